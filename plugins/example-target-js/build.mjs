// Makes the component: node build.mjs OUTPUT [WIT]

import { writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { componentize } from '@bytecodealliance/componentize-js'

const here = path => fileURLToPath(new URL(path, import.meta.url))
const [output, wit = here('../../wit')] = process.argv.slice(2)

const { component } = await componentize({
  sourcePath: here('src/target.js'),
  witPath: wit,
  worldName: 'target',
  // The engine's own ways to the outside. Those of the world are enough.
  disableFeatures: ['clocks', 'fetch-event', 'http', 'random', 'stdio']
})
await writeFile(output, component)
