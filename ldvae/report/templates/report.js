/* What pointing, sorting, searching and choosing do. Plain text only: a name from the data never becomes markup. */
"use strict";
(() => {
  const read = (id) => { const node = document.getElementById(id); return node ? JSON.parse(node.textContent) : null; };
  const blocks = read("blocks") || {};
  const cells = read("cells");
  const tip = document.getElementById("tip");
  const announce = document.getElementById("announce");

  const make = (tag, properties = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key in node && key !== "list") node[key] = value; else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };

  /* The same as `number` in page.py. */
  const grouped = (value, digits) => value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const show = (value, whole = false) => {
    if (value === null || value === undefined) return "–";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value !== "number") return String(value);
    const size = Math.abs(value);
    if (size >= 1e308) return value > 0 ? "∞" : "-∞";
    if (whole || value === 0 || size >= 1e5) return grouped(value, 0);
    if (size >= 1000) return grouped(value, 1);
    if (size >= 100) return value.toFixed(2);
    if (size >= 1e-3) return value.toPrecision(3);
    const [mantissa, exponent] = value.toExponential(1).split("e");
    return `${mantissa}e${Number(exponent)}`;
  };

  /* ---- the keyboard: a group of links or controls is one stop of the Tab key, the arrows go on inside it ---- */
  const NEXT = ["ArrowRight", "ArrowDown", "PageDown"], BACK = ["ArrowLeft", "ArrowUp", "PageUp"];
  const rest = (box, selector) => { let first = true; for (const item of box.querySelectorAll(selector)) { item.tabIndex = first ? 0 : -1; first = false; } };
  const rove = (box, selector) => {
    rest(box, selector);
    box.addEventListener("focusin", (event) => {
      const item = event.target.closest(selector);
      if (!item) return;
      for (const other of box.querySelectorAll(selector)) other.tabIndex = -1;
      item.tabIndex = 0;
    });
    box.addEventListener("keydown", (event) => {
      const item = event.target.closest?.(selector);
      if (!item || event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey) return;
      const step = NEXT.includes(event.key) ? 1 : BACK.includes(event.key) ? -1 : 0;
      if (!step) return;
      const all = [...box.querySelectorAll(selector)].filter((other) => other.getClientRects().length && !other.disabled);
      const to = all[all.indexOf(item) + step];
      event.preventDefault();
      if (to) to.focus();
    });
  };

  /* ---- copying and saving: the page sent alone has its tables and figures ---- */
  const copy = (text, button) => {
    const before = button.textContent;
    const said = () => { button.textContent = "Copied"; announce.textContent = "Copied"; setTimeout(() => { button.textContent = before; }, 1500); };
    const byHand = () => {
      const area = make("textarea", { value: text, className: "unseen" });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      said();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(said, byHand); else byHand();
  };
  const save = (blob, name) => {
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const title = () => (document.querySelector("h1")?.textContent ?? "ldvae").replace(/[^\w.-]+/g, "_");
  /* A figure as a document of its own, on white, in the colors of the light theme. */
  const LIGHT = { ink: "#1c1e21", muted: "#686d76", rule: "#d5d8dd", paper: "#fefefe" };
  const drawing = (svg) => {
    const copy = svg.cloneNode(true), [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    copy.setAttribute("font-family", "Arial, Liberation Sans, sans-serif");
    const white = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    white.setAttribute("width", "100%");
    white.setAttribute("height", "100%");
    white.setAttribute("fill", "#fff");
    copy.prepend(white);
    const text = new XMLSerializer().serializeToString(copy).replace(/var\(--(\w+)\)/g, (whole, name) => LIGHT[name] ?? "#000");
    return { text, width, height };
  };
  const asPng = ({ text, width, height }) => new Promise((done) => {
    const image = new Image(), canvas = make("canvas"), scale = 3;
    image.onload = () => {
      canvas.width = width * scale;
      canvas.height = height * scale;
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(done, "image/png");
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  });
  for (const figure of document.querySelectorAll("figure")) {
    const link = figure.querySelector("a.file"), svg = figure.querySelector("svg"), name = `${title()}_${figure.id.replace("fig-", "")}`;
    if (!link || !svg) continue;
    const label = link.getAttribute("aria-label").replace(/ as an SVG file$/, "");
    const one = make("button", { type: "button", className: "file", "aria-label": `Save as SVG: ${label}` }, "SVG");
    const other = make("button", { type: "button", className: "file", "aria-label": `Save as PNG: ${label}` }, "PNG");
    one.addEventListener("click", () => save(new Blob([drawing(svg).text], { type: "image/svg+xml" }), `${name}.svg`));
    other.addEventListener("click", () => asPng(drawing(svg)).then((blob) => save(blob, `${name}.png`)));
    link.replaceWith(one, " ", other);
  }
  for (const list of document.querySelectorAll("p.genes, .both p")) {
    for (const side of list.querySelectorAll(".side")) {
      const button = make("button", { type: "button", className: "file", "aria-label": `Copy the genes: ${side.textContent}` }, "copy");
      button.addEventListener("click", () => {
        const names = [];
        for (let next = button.nextElementSibling; next && !next.classList.contains("side"); next = next.nextElementSibling) if (next.classList.contains("gene")) names.push(next.dataset.gene);
        copy(names.join("\n"), button);
      });
      side.after(button, " ");
    }
  }

  /* ---- tips ---- */
  const place = (x, y) => {
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 4))}px`;
    tip.style.top = `${y + 18 + height > innerHeight ? y - height - 12 : y + 18}px`;
  };
  const fillTip = (name, rows) => {
    tip.replaceChildren(make("b", {}, name), ...rows.map(([title, value]) => make("div", {}, make("i", {}, title ? `${title} ` : ""), show(value))));
    return [name, ...rows.map(([title, value]) => `${title} ${show(value)}`)].join(", ");
  };

  /* ---- words of the field, explained where they stand ---- */
  const explain = (node) => {
    fillTip(node.dataset.word ?? node.textContent.trim(), []);
    tip.append(make("div", {}, node.dataset.help));
    const area = node.getBoundingClientRect();
    place(area.left, area.bottom - 10);
  };
  for (const head of document.querySelectorAll("th[title]")) { head.dataset.help = head.title; head.dataset.word = head.textContent.trim(); }
  for (const node of document.querySelectorAll("[data-help]")) {
    node.addEventListener("pointerenter", () => { node.removeAttribute("title"); explain(node); });
    node.addEventListener("pointerleave", () => { tip.hidden = true; });
    node.addEventListener("focusin", () => explain(node));
    node.addEventListener("focusout", () => { tip.hidden = true; });
  }

  /* ---- figures: the nearest point tells its numbers ---- */
  const points = (plot) => {
    if (plot.points) return plot.points;
    plot.points = [];
    for (const target of JSON.parse(plot.dataset.targets)) {
      const block = blocks[target.block];
      if (!block) continue;
      const scale = (value, [low, high], log) => log ? (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low)) : (value - low) / (high - low);
      const [left, top, right, bottom] = target.box;
      block[target.x].forEach((x, row) => {
        const y = block[target.y][row];
        if (x === null || y === null) return;
        const fx = scale(x, target.xlim, target.log[0]), fy = scale(y, target.ylim, target.log[1]);
        if (!(fx > -0.01 && fx < 1.01 && fy > -0.01 && fy < 1.01)) return;
        plot.points.push({ x: left + fx * (right - left), y: bottom - fy * (bottom - top), row, target, block });
      });
    }
    plot.points.sort((a, b) => a.x - b.x || a.y - b.y);
    return plot.points;
  };
  const showPoint = (plot, point) => {
    const area = plot.querySelector("svg").getBoundingClientRect(), frame = plot.getBoundingClientRect();
    const x = area.left + point.x * area.width, y = area.top + point.y * area.height;
    plot.ring ??= plot.appendChild(make("div", { className: "ring" }));
    plot.ring.style.left = `${x - frame.left + plot.scrollLeft}px`;
    plot.ring.style.top = `${y - frame.top}px`;
    plot.current = point;
    const rows = Object.entries(point.target.show).map(([column, title]) => [title, point.block[column][point.row]]);
    const text = fillTip(String(point.block[point.target.name][point.row]), rows);
    place(x, y);
    return text;
  };
  const hidePoint = (plot) => { tip.hidden = true; plot.ring?.remove(); plot.ring = null; plot.current = null; };
  const nearest = (plot, event) => {
    const area = plot.querySelector("svg").getBoundingClientRect();
    const reach = 900; // square of 30 pixels
    let best = null, least = reach;
    for (const point of points(plot)) {
      const dx = area.left + point.x * area.width - event.clientX, dy = area.top + point.y * area.height - event.clientY;
      const distance = dx * dx + dy * dy;
      if (distance < least) { least = distance; best = point; }
    }
    return best;
  };
  for (const plot of document.querySelectorAll(".plot[data-targets]")) {
    const follow = (event) => { const point = nearest(plot, event); if (point) showPoint(plot, point); else hidePoint(plot); };
    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerdown", follow);
    plot.addEventListener("pointerleave", () => hidePoint(plot));
    plot.addEventListener("blur", () => hidePoint(plot));
    plot.addEventListener("keydown", (event) => {
      const all = points(plot);
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hidePoint(plot);
      if (NEXT.includes(event.key) !== BACK.includes(event.key) && !step) hidePoint(plot);
      if (!step || !all.length) return;
      event.preventDefault();
      const at = plot.current ? all.indexOf(plot.current) + step : step > 0 ? 0 : all.length - 1;
      announce.textContent = showPoint(plot, all[Math.max(0, Math.min(all.length - 1, at))]);
    });
  }

  /* ---- tables: sort, search, page ---- */
  const cellOf = (column, value, row, href) => {
    const link = (properties) => make("td", {}, make("a", { tabIndex: -1, ...properties }, value));
    if (column.kind === "gene") return link({ className: "gene", href: "#genes", "data-gene": value });
    if (column.kind === "contrast") return link({ href: `#contrast-de-${row + 1}` });
    if (column.kind === "program") return link({ href: `#program-${value}` });
    if (column.kind === "link" && href) return link({ href });
    if (column.kind === "bar" && value !== null) {
      const width = Math.max(0, Math.min(1, value)) * 100;
      const bar = make("span", { className: "bar" }, make("span", {}));
      bar.firstChild.style.width = `${width.toFixed(1)}%`;
      return make("td", { className: "n" }, bar, `${(value * 100).toFixed(1)}%`);
    }
    if (column.kind === "p" && value === 0) return make("td", { className: "n" }, "<1e-300"); // less than a number can hold
    if (column.kind === "id") return make("td", {}, make("code", {}, value));
    return make("td", { className: column.kind === "text" ? "" : "n" }, show(value, column.whole));
  };
  for (const box of document.querySelectorAll(".table")) {
    const block = blocks[box.dataset.block], columns = JSON.parse(box.dataset.columns), size = Number(box.dataset.page);
    const n = block[columns[0].key].length, body = box.querySelector("tbody"), tools = box.querySelector(".tools");
    let order = [...Array(n).keys()], found = order, page = 0, sorted = null;
    const count = make("span", { className: "meta" });
    const back = make("button", { type: "button" }, "Previous"), next = make("button", { type: "button" }, "Next");
    const draw = () => {
      const rows = found.slice(page * size, (page + 1) * size);
      body.replaceChildren(...rows.map((row) => make("tr", {}, ...columns.map((column) => cellOf(column, block[column.key][row], row, block[`${column.key}_href`]?.[row])))));
      const last = Math.min(found.length, (page + 1) * size);
      count.textContent = found.length ? `${(page * size + 1).toLocaleString("en-US")}–${last.toLocaleString("en-US")} of ${found.length.toLocaleString("en-US")}` : "nothing found";
      back.disabled = page === 0;
      next.disabled = last >= found.length;
    };
    let words = "";
    const search = () => {
      const texts = columns.filter((column) => !["number", "bar", "p"].includes(column.kind));
      found = words ? order.filter((row) => texts.some((column) => String(block[column.key][row]).toLowerCase().includes(words))) : order;
      page = 0;
      draw();
    };
    columns.forEach((column, index) => {
      const head = box.querySelectorAll("th")[index];
      const button = make("button", { type: "button", tabIndex: -1 }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const numeric = ["number", "bar", "p"].includes(column.kind);
        const down = sorted === column.key ? head.getAttribute("aria-sort") === "ascending" : numeric;
        sorted = column.key;
        const values = block[column.key], sign = down ? -1 : 1;
        order = [...Array(n).keys()].sort((a, b) => {
          if (values[a] === values[b]) return a - b;
          if (values[a] === null || values[b] === null) return values[a] === null ? 1 : -1;
          return sign * (numeric ? values[a] - values[b] : String(values[a]).localeCompare(String(values[b]), "en", { numeric: true }));
        });
        for (const other of box.querySelectorAll("th")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        search();
      });
    });
    if ("search" in box.dataset) {
      const input = make("input", { type: "search", id: `search-${box.id}`, spellcheck: false, autocomplete: "off" });
      tools.append(make("label", { htmlFor: input.id }, "Search"), input);
      input.addEventListener("input", () => { words = input.value.trim().toLowerCase(); search(); });
    }
    if (n > size || "search" in box.dataset) tools.append(count);
    if (n > size) {
      tools.append(back, next);
      back.addEventListener("click", () => { page -= 1; draw(); });
      next.addEventListener("click", () => { page += 1; draw(); });
    }
    const quoted = (value, mark) => { const text = value === null ? "" : String(value); return /["\n\r]/.test(text) || text.includes(mark) ? `"${text.replaceAll('"', '""')}"` : text; };
    const lines = (mark) => [columns.map((column, index) => quoted(box.querySelectorAll("th")[index].textContent, mark)), ...found.map((row) => columns.map((column) => quoted(block[column.key][row], mark)))].map((line) => line.join(mark)).join("\n") + "\n";
    const copyAll = make("button", { type: "button", className: "small", tabIndex: -1, "aria-label": `Copy the table: ${box.dataset.title}` }, "Copy");
    const csv = make("button", { type: "button", className: "small", tabIndex: -1, "aria-label": `Save as CSV: ${box.dataset.title}` }, "CSV");
    copyAll.addEventListener("click", () => copy(lines("\t"), copyAll));
    csv.addEventListener("click", () => save(new Blob([lines(",")], { type: "text/csv" }), `${title()}_${box.dataset.block}.csv`));
    tools.append(copyAll, csv);
    back.tabIndex = next.tabIndex = -1;
    draw();
    /* The table is one stop; Enter goes to its controls, Escape back. */
    const region = box.querySelector(".scroll"), inside = ".tools button, th button, td a";
    box.addEventListener("keydown", (event) => {
      const all = [...box.querySelectorAll(inside)].filter((item) => !item.disabled);
      const at = all.indexOf(event.target.closest(inside));
      if (event.key === "Enter" && event.target === region && all.length) { event.preventDefault(); all[0].focus(); }
      else if (event.key === "Escape" && at >= 0) region.focus();
      else if (at >= 0 && (NEXT.includes(event.key) || BACK.includes(event.key))) {
        event.preventDefault();
        all[at + (NEXT.includes(event.key) ? 1 : -1)]?.focus();
      }
    });
  }

  /* ---- genes: what one does in every program and contrast ---- */
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const finder = document.getElementById("genes"), measured = read("measured");
  if (finder && blocks.genes) {
    const form = finder.querySelector("form"), input = form.querySelector("input"), result = document.getElementById("gene-result");
    form.hidden = false;
    const programs = Object.keys(blocks.genes).filter((name) => name !== "gene");
    const known = measured ? measured.gene : blocks.genes.gene;
    finder.querySelector("datalist").append(...known.map((gene) => make("option", { value: gene })));
    const unpacked = {};
    /* Packed as in page.py: 16 bits a number, effects in steps of 1/2000, z in steps of 1/100. */
    const packed = (kind, program) => unpacked[`${kind} ${program}`] ??= new Int16Array(bytes(measured[kind][program]).buffer);
    const at = (list, wanted) => list.findIndex((name) => name.toLowerCase() === wanted);
    const rank = (program, row) => {
      const size = Math.abs(blocks.genes[program][row]);
      return 1 + blocks.genes[program].filter((value) => Math.abs(value) > size).length;
    };
    const tableOf = (heads, rows) => make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((title, i) => make("th", { scope: "col", className: i ? "n" : "" }, title)))), make("tbody", {}, ...rows));
    const numeric = (...parts) => make("td", { className: "n" }, ...parts);
    const find = (gene) => {
      const wanted = gene.trim().toLowerCase();
      if (!wanted) return;
      const row = at(blocks.genes.gene, wanted), any = measured ? at(measured.gene, wanted) : -1;
      input.value = gene;
      if (row < 0 && any < 0) { result.replaceChildren(make("p", {}, `${gene} is not among the genes that were measured${measured ? "" : " and modeled"}.`)); return; }
      const name = any >= 0 ? measured.gene[any] : blocks.genes.gene[row];
      const entries = programs.map((program) => ({ program, effect: any >= 0 ? packed("effect", program)[any] / 2000 : null, z: any >= 0 ? packed("z", program)[any] / 100 : null, loading: row >= 0 ? blocks.genes[program][row] : null, rank: row >= 0 ? rank(program, row) : null }));
      const size = (entry) => Math.abs(entry.effect ?? entry.loading);
      entries.sort((a, b) => size(b) - size(a));
      const most = Math.max(...entries.map(size), 1e-9);
      const lines = entries.map((entry) => {
        const value = entry.effect ?? entry.loading, bar = make("span", { className: "bar signed" }, make("span", { className: value < 0 ? "down" : "" }));
        bar.firstChild.style.width = `${size(entry) / most * 50}%`;
        const cells = [make("td", {}, make("a", { href: `#program-${entry.program}` }, entry.program)), numeric(bar, show(value))];
        if (any >= 0) cells.push(numeric(show(entry.z)));
        if (row >= 0) cells.push(...(any >= 0 ? [numeric(show(entry.loading))] : []), numeric(show(entry.rank, true)));
        return make("tr", {}, ...cells);
      });
      const heads = ["Program", any >= 0 ? "Effect" : "Loading"];
      if (any >= 0) heads.push("z");
      if (row >= 0) heads.push(...(any >= 0 ? ["Loading"] : []), "Rank by size");
      const links = make("p", { className: "note" }, "Elsewhere: ");
      for (const [title, address] of [["NCBI Gene", "https://www.ncbi.nlm.nih.gov/gene/?term="], ["GeneCards", "https://www.genecards.org/Search/Keyword?queryString="], ["Ensembl", "https://www.ensembl.org/Multi/Search/Results?q="]]) {
        links.append(make("a", { href: address + encodeURIComponent(name), rel: "noreferrer", target: "_blank" }, title), " ");
      }
      const parts = [make("h4", { className: "gene" }, name)];
      if (document.getElementById("map-gene") && at(cells.genes.name, name.toLowerCase()) >= 0) {
        const button = make("button", { type: "button" }, "Color the map by it");
        button.addEventListener("click", () => document.dispatchEvent(new CustomEvent("colorby", { detail: name })));
        parts.push(make("p", {}, button));
      }
      if (row < 0) parts.push(make("p", { className: "note" }, "Measured, but not among the genes of the model: its effects are those of a regression of its counts on the scores."));
      parts.push(tableOf(heads, lines));
      const calls = [];
      for (const contrast of document.querySelectorAll(".contrast")) {
        const id = contrast.id.replace("contrast-de-", ""), model = blocks[`de-${id}`], counts = blocks[`counts-${id}`];
        const inModel = model ? at(model.gene, wanted) : -1, inCounts = counts ? at(counts.gene, wanted) : -1;
        if (inModel < 0 && inCounts < 0) continue;
        const title = contrast.querySelector("h3").textContent, value = (block, key, place) => place >= 0 && block[key] ? block[key][place] : null;
        calls.push(make("tr", {}, make("td", {}, make("a", { href: `#${contrast.id}` }, title)), numeric(show(value(counts, "pseudobulk_lfc", inCounts) ?? value(counts, "log2fc", inCounts))), numeric(show(value(counts, "auc", inCounts))), numeric(show(value(model, "lfc_mean", inModel))), numeric(show(value(model, "proba_de", inModel))), numeric(show(value(model, "both", inModel)))));
      }
      if (calls.length) parts.push(tableOf(["Contrast", "log2 fc, counts", "AUC", "log2 fc, model", "P(DE)", "By both"], calls));
      parts.push(links);
      result.replaceChildren(...parts);
    };
    form.addEventListener("submit", (event) => { event.preventDefault(); find(input.value); });
    input.addEventListener("change", () => find(input.value));
    document.addEventListener("click", (event) => { const link = event.target.closest?.("a.gene"); if (link) find(link.dataset.gene ?? link.textContent); });
  }

  /* ---- the map of cells ---- */
  const map = document.getElementById("map");
  if (map && cells) {
    const words16 = (text) => new Uint16Array(bytes(text).buffer);
    const xs = words16(cells.x), ys = words16(cells.y), n = xs.length;
    const select = map.querySelector("select"), canvas = map.querySelector("canvas"), legend = map.querySelector(".legend");
    const context = canvas.getContext("2d");
    let variable = null, values = null, alone = null, at = { scale: 1, dx: 0, dy: 0 };
    const viridis = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
    const ramp = (share) => {
      const place = share * (viridis.length - 1), low = Math.min(Math.floor(place), viridis.length - 2), part = place - low;
      const mix = (i) => Math.round(parseInt(viridis[low].slice(i, i + 2), 16) * (1 - part) + parseInt(viridis[low + 1].slice(i, i + 2), 16) * part);
      return `rgb(${mix(1)}, ${mix(3)}, ${mix(5)})`;
    };
    const steps = Array.from({ length: 255 }, (_, i) => ramp(i / 254));
    const draw = () => {
      const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
      canvas.width = width * ratio; canvas.height = height * ratio;
      context.scale(ratio, ratio);
      const [lowX, highX] = extent(xs), [lowY, highY] = extent(ys);
      const scale = Math.min((width - 16) / Math.max(1, highX - lowX), (height - 16) / Math.max(1, highY - lowY));
      at = { scale, dx: width / 2 - scale * (lowX + highX) / 2, dy: height / 2 + scale * (lowY + highY) / 2 };
      const size = Math.max(0.9, Math.min(3.2, 90 / Math.sqrt(n)) * Math.sqrt(width / 560));
      const faded = getComputedStyle(document.documentElement).getPropertyValue("--rule");
      const continuous = variable.kind === "continuous";
      for (const pass of [0, 1]) {
        for (const i of drawOrder) {
          const value = values[i], muted = value === 255 || (alone !== null && value !== alone);
          if (muted !== (pass === 0)) continue;
          context.fillStyle = muted ? faded : continuous ? steps[value] : variable.colors[value];
          context.beginPath();
          context.arc(at.dx + at.scale * xs[i], at.dy - at.scale * ys[i], size, 0, 6.3);
          context.fill();
        }
      }
      if (!continuous && variable.levels.length <= 40) drawNames();
    };
    /* The names of the levels where most of their cells are, as on scanpy's maps with legend_loc="on data". */
    const drawNames = () => {
      const style = getComputedStyle(document.documentElement);
      context.font = `600 ${canvas.clientWidth < 500 ? 10 : 12}px ${style.getPropertyValue("--sans")}`;
      context.textAlign = "center";
      context.lineJoin = "round";
      context.lineWidth = 3;
      context.strokeStyle = style.getPropertyValue("--paper");
      context.fillStyle = style.getPropertyValue("--ink");
      const middle = (list) => list.sort((a, b) => a - b)[list.length >> 1];
      const members = variable.levels.map(() => []);
      for (let i = 0; i < n; i++) members[values[i]]?.push(i);
      const taken = [];
      [...members.keys()].sort((a, b) => members[b].length - members[a].length).forEach((code) => {
        if ((alone !== null && alone !== code) || !members[code].length) return;
        if (alone === null && members[code].length <= n / 200) return; // a few scattered cells have no middle
        const level = variable.levels[code], name = level.length > 24 ? `${level.slice(0, 23)}…` : level;
        const half = context.measureText(name).width / 2 + 2;
        const center = at.dx + at.scale * middle(members[code].map((i) => xs[i]));
        const x = Math.max(half, Math.min(canvas.clientWidth - half, center));
        const y = at.dy - at.scale * middle(members[code].map((i) => ys[i]));
        // A name that would lie on a larger group's name is left to the legend.
        if (taken.some(([tx, ty, other]) => Math.abs(tx - x) < half + other && Math.abs(ty - y) < 14)) return;
        taken.push([x, y, half]);
        context.strokeText(name, x, y);
        context.fillText(name, x, y);
      });
    };
    const extent = (array) => { let low = Infinity, high = -Infinity; for (const v of array) { if (v < low) low = v; if (v > high) high = v; } return [low, high]; };
    let drawOrder = null;
    const fillLegend = () => {
      if (variable.kind === "continuous") {
        const bar = make("span", { className: "ramp" });
        bar.style.background = `linear-gradient(90deg, ${viridis.join(", ")})`;
        legend.replaceChildren(make("span", {}, show(Number(variable.low.toPrecision(3)))), bar, make("span", {}, show(Number(variable.high.toPrecision(3)))));
        if (variable.program) legend.append(make("a", { href: `#program-${variable.program}` }, `more about ${variable.program}`));
        return;
      }
      legend.replaceChildren(...variable.levels.map((level, code) => {
        const swatch = make("span", { className: "swatch" });
        swatch.style.background = variable.colors[code];
        const button = make("button", { type: "button", "aria-pressed": "false" }, swatch, level);
        button.addEventListener("click", () => {
          alone = alone === code ? null : code;
          [...legend.children].forEach((other, i) => other.setAttribute("aria-pressed", String(i === alone)));
          draw();
        });
        return button;
      }));
      rest(legend, "button, a");
    };
    rove(legend, "button, a");
    const choose = (index) => paint(cells.variables[index], bytes(cells.variables[index].values));
    const paint = (chosen, codes) => {
      variable = chosen;
      values = codes;
      alone = null;
      drawOrder = [...Array(n).keys()];
      // High scores on top, as scanpy draws them; groups in the order of the cells.
      if (variable.kind === "continuous") drawOrder.sort((a, b) => values[a] - values[b]);
      map.querySelector("#map-title").textContent = `The cells, colored by ${variable.name}`;
      fillLegend();
      draw();
    };
    map.querySelector("figure").hidden = true;
    map.querySelector(".live").hidden = false;
    select.addEventListener("change", () => { if (wanted) wanted.value = ""; choose(Number(select.value)); });
    /* Genes: one byte a cell, gene after gene, deflated as in page.py; unpacked when the first is asked for. */
    const wanted = document.getElementById("map-gene"), genes = cells.genes;
    let unpacked = null;
    const colorBy = async (text) => {
      const row = genes.name.findIndex((name) => name.toLowerCase() === text.trim().toLowerCase());
      if (row < 0) return false;
      unpacked ??= new Response(new Blob([bytes(genes.values)]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
      const all = new Uint8Array(await unpacked);
      wanted.value = genes.name[row];
      paint({ name: genes.name[row], kind: "continuous", low: 0, high: genes.high[row] }, all.subarray(row * n, (row + 1) * n));
      return true;
    };
    document.addEventListener("colorby", async (event) => { if (await colorBy(event.detail)) map.scrollIntoView(); });
    if (wanted) {
      map.querySelector("datalist").append(...genes.name.map((name) => make("option", { value: name })));
      wanted.addEventListener("change", async () => {
        const known = !wanted.value || await colorBy(wanted.value);
        wanted.setCustomValidity(known ? "" : `${wanted.value} is not among the ${genes.name.length} genes of the map.`);
        wanted.reportValidity();
      });
    }
    canvas.addEventListener("pointermove", (event) => {
      const area = canvas.getBoundingClientRect(), x = event.clientX - area.left, y = event.clientY - area.top;
      let best = -1, least = 100;
      for (let i = 0; i < n; i++) {
        const dx = at.dx + at.scale * xs[i] - x, dy = at.dy - at.scale * ys[i] - y, distance = dx * dx + dy * dy;
        if (distance < least) { least = distance; best = i; }
      }
      if (best < 0) { tip.hidden = true; return; }
      const rows = cells.variables.filter((other) => other.kind === "categorical").map((other) => { other.bytes ??= bytes(other.values); return [other.name, other.levels[other.bytes[best]] ?? "–"]; });
      if (variable.kind === "continuous" && values[best] < 255) rows.push([variable.name, Number((variable.low + (variable.high - variable.low) * values[best] / 254).toPrecision(2))]);
      fillTip(cells.cells ? cells.cells[best] : "a cell", rows);
      place(event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
    addEventListener("resize", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    document.addEventListener("themechange", draw);
    choose(0);
  }

  /* ---- contents that follow, the theme, copying ---- */
  const contents = document.querySelector(".toc");
  if (contents) {
    const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.getAttribute("href").slice(1), link]));
    const places = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
    const mark = () => {
      let current = places[0];
      for (const part of places) if (part.getBoundingClientRect().top < innerHeight * 0.3) current = part;
      for (const [id, link] of links) if (id === current.id) link.setAttribute("aria-current", "location"); else link.removeAttribute("aria-current");
    };
    addEventListener("scroll", mark, { passive: true });
    mark();
    const narrow = matchMedia("(max-width: 69.99rem)"), details = contents.querySelector("details");
    const fold = () => { details.open = !narrow.matches; };
    narrow.addEventListener("change", fold);
    fold();
    details.addEventListener("click", (event) => { if (event.target.closest("a") && narrow.matches) details.open = false; });
    const button = document.getElementById("theme"), root = document.documentElement;
    const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
    button.hidden = false;
    button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); document.dispatchEvent(new Event("themechange")); });
    name();
  }
  /* A link into a folded contrast opens it. */
  const unfold = () => { const target = document.getElementById(decodeURIComponent(location.hash.slice(1))); if (target?.tagName === "DETAILS") target.open = true; };
  addEventListener("hashchange", unfold);
  unfold();
  /* Paper shows everything. */
  addEventListener("beforeprint", () => { for (const folded of document.querySelectorAll("main details")) folded.open = true; });
  for (const part of document.querySelectorAll(".scripts")) part.hidden = false;
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => copy(document.getElementById(button.dataset.copy).innerText, button));
  }
  const groups = [[".toc", "a, #theme"], [".findings", "a"], [".warnings", "a"], [".strongest", "a"], [".figures, .flow", ".plot[tabindex], button.file"], ["article.program", "p.genes a, p.genes button, .next a"], ["#de", "details.contrast > summary"], [".contrast", ".both a, .both button, p.note a"], ["#making", ".files a"], ["#making", ":scope > details > summary"]];
  for (const [where, what] of groups) for (const box of document.querySelectorAll(where)) rove(box, what);
})();
