// Works with a pool through npm's xen-api and prints what it saw as one JSON object.
//
// Usage: node session.mjs MODULES URL USER PASSWORD VM_UUID
// MODULES is the folder whose node_modules holds xen-api.

import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [modules, url, user, password, vmUuid] = process.argv.slice(2)
const { resolve } = createRequire(`${modules}/package.json`)
const { createClient } = await import(pathToFileURL(resolve('xen-api')))

const xapi = createClient({ url, auth: { user, password }, allowUnauthorized: true, watchEvents: true })
await xapi.connect()
// All records have come once.
await xapi.objectsFetched

const seen = {}
seen.pool = xapi.pool.name_label
const vm = xapi.getObjectByUuid(vmUuid)
seen.vm = vm.name_label
// Numbers travel as numbers in JSON.
seen.memory = vm.memory_static_max

const added = new Promise(done => {
  xapi.objects.on('add', objects => {
    const snapshot = Object.values(objects).find(object => object.name_label === 'by node')
    if (snapshot !== undefined) done(snapshot)
  })
})
// Starts the task, follows its events, decodes its result.
const ref = await xapi.callAsync('VM.snapshot', vm.$ref, 'by node')
seen.snapshot = (await added).uuid
seen.sameSnapshot = (await added).$ref === ref

const changed = xapi.barrier(vm.$ref)
await xapi.setFieldEntry('VM', vm.$ref, 'other_config', 'peer', 'node')
await xapi.setFieldEntry('VM', vm.$ref, 'other_config', 'peer', 'node again')
await changed
await xapi.barrier()
seen.entry = xapi.getObjectByUuid(vmUuid).other_config.peer

seen.failedTask = await xapi.callAsync('VM.start', ref, false, false).then(
  () => undefined,
  error => error.code
)
seen.failedCall = await xapi.call('VM.get_by_uuid', 'nobody').then(
  () => undefined,
  error => error.code
)
await xapi.callAsync('VM.destroy', ref)
await xapi.disconnect()
console.log(JSON.stringify(seen))
