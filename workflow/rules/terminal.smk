"""What a run says: with `--quiet rules` one line for each job, and at the end what was found."""

import logging

from snakemake_interface_logger_plugins.common import LogEvent

STARTED = time.time()


def duration(seconds):
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    )


class JobLines(logging.Handler):
    """Prints a line for each job that ends, with its dataset and run, and how long all others may take."""

    def __init__(self):
        super().__init__()
        self.jobs, self.began, self.finished = {}, {}, []

    def emit(self, record):
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_INFO:
            name = " ".join([record.rule_name, *map(str, dict(record.wildcards or {}).values())])
            self.jobs[record.jobid], self.began[record.jobid] = name, time.time()
        elif event == LogEvent.JOB_FINISHED:
            self.finished.append(record.job_id)
        elif event == LogEvent.JOB_ERROR:
            print(
                f"FAILED: {self.jobs.get(record.jobid)}; see {', '.join(record.log or [])}", file=sys.stderr, flush=True
            )
        elif event == LogEvent.PROGRESS:
            now = time.time()
            for job in self.finished:
                name = self.jobs.get(job, "")
                if name in ("", "all", "default"):
                    continue
                text = f"[{record.done}/{record.total}] {name}: {duration(now - self.began[job])}"
                if 2 < record.done < record.total - 2:
                    text += f"; about {duration((now - STARTED) * (record.total - record.done) / record.done)} left"
                print(text, file=sys.stderr, flush=True)
            self.finished = []


def left_to_job_lines(record):
    events = (LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.PROGRESS, LogEvent.RUN_INFO)
    return getattr(record, "event", None) in events or record.msg == "Select jobs to execute..."


if workflow.is_main_process and quiet_about_rules():
    if "JobLines" not in [type(handler).__name__ for handler in logger.handlers]:
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(lambda record: not left_to_job_lines(record))
        logger.addHandler(JobLines())


onsuccess:
    # What `ldvae index` found: programs, warnings in plain words, what to open next.
    said = Path(placed("<logs>/index/index.log"))
    of_this_run = said.exists() and said.stat().st_mtime > STARTED
    found = said.read_text().partition(" INFO Finished: ")[2] if of_this_run else ""
    if found:
        print(f"\nFinished after {duration(time.time() - STARTED)}: {found.rstrip()}", file=sys.stderr)
