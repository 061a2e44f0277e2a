// Makes the component: node build.mjs OUTPUT [WIT]
//
// componentize-qjs runs the plugin once at build time, to keep what its modules have set up. While it does, it gives
// `wasi:io@0.2` an implementation of its own, and the streams of `delta`, which are those of `wasi:io`, are then of another
// type than it expects. So the contract is shown to it with a version of WASI that it does not know, and the component's
// imports get one that hosts know: 0.2.11, because the JavaScript engine inside imports 0.2.12 itself, and no name may
// stand twice. A host gives both the same functions.

import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { componentize } from 'componentize-qjs'

const CONTRACT = '@0.2.12'
const UNKNOWN = '@0.9.12'
const IMPORTED = '@0.2.11'

const here = path => fileURLToPath(new URL(path, import.meta.url))
const [output, wit = here('../../wit')] = process.argv.slice(2)

const work = await mkdtemp(join(tmpdir(), 'example-target-js-'))
try {
  await cp(here('src'), join(work, 'src'), { recursive: true })
  await cp(wit, join(work, 'wit'), { recursive: true })
  for (const file of await readdir(work, { recursive: true })) {
    const path = join(work, file)
    if (/\.(js|wit)$/.test(file)) await writeFile(path, (await readFile(path, 'utf8')).replaceAll(CONTRACT, UNKNOWN))
  }
  const jsPath = join(work, 'src/target.js')
  const { component } = await componentize({
    witPath: join(work, 'wit'),
    world: 'target',
    jsSource: await readFile(jsPath, 'utf8'),
    jsPath,
    moduleRoot: work,
    // Hosts without asynchronous components run it as well, and a plugin gains nothing by the faster engine.
    sync: true,
    optSize: true,
  })
  // The names are as long as before, so nothing else in the binary moves.
  await writeFile(output, component.toString('latin1').replaceAll(UNKNOWN, IMPORTED), 'latin1')
} finally {
  await rm(work, { recursive: true })
}
