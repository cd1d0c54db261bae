// Files of counts in a task: each input has a folder of its own, in which its files have the names that they have outside.

// Shell lines that put staged files there. inputs: as `ldvae plan` lists them, their files in the order of `counts`.
def arranged(counts, inputs) {
    def names = inputs.withIndex(1).collectMany { input, i -> input.files.collect { name -> "input${i}/${name}" } }
    def lines = [[counts].flatten(), names].transpose().collect { staged, name ->
        // Nextflow escapes spaces of some names and not of others.
        "mkdir -p '${name.take(name.lastIndexOf('/'))}' && mv '${staged.toString().replace('\\', '')}' '${name}'"
    }
    return lines.join('\n    ')
}

// What the command reads; no inputs: the staged files as they are, and without any the embedded demo.
def named(counts, inputs) {
    return inputs.withIndex(1).collect { input, i -> "'input${i}/${input.name}'" }.join(' ') ?: counts ?: 'demo:pbmc68k'
}
