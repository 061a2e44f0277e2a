// A target: recovery points as folders of files, which share what did not change. The README says what they look like.
//
// A folder that is called like a point is a point. It gets this name in one act, by `commit`, and loses it in one, by
// `delete`; whatever else is there is being made or removed, and `collect` finds it.

import { failure, isDamaged } from './errors.js'
import { Folder } from './files.js'

// Sizes and offsets come as BigInt. No disk has more bytes than a number counts exactly, so here they are numbers.

/** How the data comes: the block of a VHD. */
const CHUNK = 2 << 20

/** What one folder holds of a disk: few enough names to have all of them in memory. */
const GROUP = 1024 * CHUNK

/** How chunks are written down. The host does it, and undoes it. */
const ZSTD = { tag: 'zstd' }

/** The version of `point.json`. */
const FORMAT = 1

export const replicate = {
  describe: () => ({
    id: 'example-target-js',
    version: '0.1.0',
    summary: 'Keeps recovery points as files that share what did not change.',
    extensions: []
  }),

  validateConfig (config) {
    using _ = open(config)
  },

  dataShape: () => ({ chunkSize: CHUNK, onlyNewest: false, extensions: [] }),

  points (config, vm) {
    using all = open(config)
    const isPoint = ({ name, type }) => type === 'directory' && isPlain(name) && all.stat(`${name}/point.json`)
    const points = all.list().filter(isPoint).map(({ name }) => pointOf(all, name))
    return points.filter(point => point.vm === (vm ?? point.vm)).sort((a, b) => Number(a.takenAt - b.takenAt))
  },

  metadata (config, point) {
    using all = open(config)
    return all.read(`${plain(point)}/vm.json`)
  },

  layout (config, point, disk, since) {
    using all = open(config)
    using now = openDisk(all, point, disk)
    using before = since && openDisk(all, since, disk)
    const { size } = manifestOf(all, point).disks.find(kept => kept.disk === disk)
    const extents = []
    for (let group = 0; group * GROUP < size; group++) {
      const is = chunksOf(now, `${group}`)
      const was = before ? chunksOf(before, `${group}`) : new Map()
      const differs = offset => is.get(offset)?.file !== was.get(offset)?.file
      for (const offset of [...new Map([...is, ...was]).keys()].filter(differs).sort((a, b) => a - b)) {
        const length = Math.min(CHUNK, size - offset)
        const last = extents.at(-1)
        if (last && last.offset + last.length === offset) last.length += length
        else extents.push({ offset, length })
      }
    }
    return extents.map(({ offset, length }) => ({ offset: BigInt(offset), length: BigInt(length) }))
  },

  write (config, draft, delta) {
    const { disk, content, size: bytes, kind } = delta.info()
    const size = Number(bytes)
    if (kind.tag === 'other') throw failure('unsupported', `data of the kind \`${kind.val}\` is not known`)
    using all = open(config)
    using folder = all.createFolder(draftOf(draft.id))
    folder.remove(plain(disk))
    using into = folder.createFolder(disk)
    using base = kind.tag === 'delta' ? openDisk(all, kind.val, disk) : null
    let [chunks, stored] = [0, 0]
    let chunk = delta.next()
    const before = end => chunk && Number(chunk.offset()) < end
    for (let group = 0; group * GROUP < size; group++) {
      using here = into.createFolder(`${group}`)
      const unchanged = base ? chunksOf(base, `${group}`) : new Map()
      for (; before((group + 1) * GROUP); chunk = delta.next()) {
        // Let go before the next one is asked for: what is held has a limit.
        using sent = chunk
        unchanged.delete(Number(sent.offset()))
        if (sent.isZero()) continue
        stored += store(here, sent)
        chunks += 1
      }
      for (const { path, file } of unchanged.values()) base.link(path, here, file)
      chunks += unchanged.size
      here.sync()
    }
    into.sync()
    folder.sync()
    return new TextEncoder().encode(JSON.stringify({ disk, content, size, chunks, stored }))
  },

  commit (config, draft, receipts) {
    using all = open(config)
    const id = plain(draft.id)
    // It may have been committed before somebody could be told.
    if (all.stat(id) === undefined) {
      const { job, vm, name, takenAt, metadata } = draft
      const utf8 = new TextDecoder()
      const disks = receipts.map(({ receipt, digest }) => ({ ...JSON.parse(utf8.decode(receipt)), digest }))
      using folder = all.folder(draftOf(id))
      // A text as it is: JavaScript's numbers would not keep every number of JSON.
      folder.replace('vm.json', metadata)
      const manifest = { format: FORMAT, job, vm, name, takenAt: Number(takenAt), disks }
      folder.replace('point.json', JSON.stringify(manifest, null, 2))
      all.rename(draftOf(id), id)
      all.sync()
    }
    return pointOf(all, id)
  },

  abort (config, draft) {
    using all = open(config)
    all.remove(draftOf(draft.id))
  },

  read (config, point, disk, extents, restore) {
    using all = open(config)
    using from = openDisk(all, point, disk)
    let [group, chunks, done] = [-1, null, 0]
    for (const extent of extents) {
      const [offset, length] = [Number(extent.offset), Number(extent.length)]
      // Whole chunks, for their digests; the host takes of them what it asked for.
      for (let at = Math.max(done, offset - offset % CHUNK); at < offset + length; at += CHUNK) {
        const its = Math.floor(at / GROUP)
        if (its !== group) [group, chunks] = [its, chunksOf(from, `${its}`)]
        if (chunks.has(at)) put(restore, from, chunks.get(at))
        done = at + CHUNK
      }
    }
  },

  verify (config, point, check) {
    using all = open(config)
    using folder = all.folder(plain(point))
    const found = []
    for (const { disk, size, chunks } of manifestOf(all, point).disks) {
      let there = 0
      for (let group = 0; group * GROUP < size; group++) {
        for (const chunk of chunksOf(folder, `${disk}/${group}`).values()) {
          there += 1
          try {
            put(check, folder, chunk)
          } catch (problem) {
            if (!isDamaged(problem)) throw problem
            const extent = { offset: BigInt(chunk.offset), length: BigInt(Math.min(CHUNK, size - chunk.offset)) }
            found.push({ disk, extent, message: problem.payload.message })
          }
        }
      }
      if (there !== chunks) {
        found.push({ disk, message: `of ${chunks} chunks that were stored ${there} are there` })
      }
    }
    keepDamage(folder, found)
    return found
  },

  hold (config, point, held) {
    using all = open(config)
    using folder = all.folder(plain(point))
    if (held) return folder.replace('held', '')
    folder.remove('held')
    folder.sync()
  },

  delete (config, point) {
    using all = open(config)
    if (all.stat(plain(point))) {
      all.rename(point, goneOf(point))
      all.sync()
    }
    all.remove(goneOf(point))
  },

  collect (config, drafts, apply) {
    using all = open(config)
    const garbage = []
    for (const { name, type } of all.list()) {
      const [, id, state] = /^(.*)\.(draft|gone)$/.exec(name) ?? []
      if (type !== 'directory' || !isPlain(id) || (state === 'draft' && drafts.includes(id))) continue
      const begun = 'it was begun and never became a recovery point'
      const why = state === 'draft' ? begun : 'the recovery point was deleted'
      garbage.push({ what: name, why, bytes: all.size(name) })
      if (apply) all.remove(name)
    }
    return garbage
  }
}

/** The folder of the settings. */
function open (config) {
  const { folder, ...others } = JSON.parse(config)
  const [unknown] = Object.keys(others)
  if (unknown) throw failure('config', `\`${unknown}\` is not known; \`folder\` is the only setting`)
  if (typeof folder === 'string' && folder.startsWith('/')) return Folder.open(folder)
  throw failure('config', '`folder` has to be the absolute path of a folder')
}

/** Whether an identity can name a file. */
const isPlain = id => /^[A-Za-z0-9-]{1,64}$/.test(id ?? '')

function plain (id) {
  if (isPlain(id)) return id
  throw failure('unsupported', `\`${id}\` cannot name a file`)
}

const draftOf = id => `${plain(id)}.draft`
const goneOf = id => `${plain(id)}.gone`

/** The folder of one disk of a point. */
const openDisk = (all, point, disk) => all.folder(`${plain(point)}/${plain(disk)}`)

/** `point.json` of a point. */
function manifestOf (all, point) {
  const path = `${plain(point)}/point.json`
  const text = all.read(path)
  let manifest
  try {
    manifest = JSON.parse(text)
  } catch ({ message }) {
    throw failure('damaged', `${path}: ${message}`)
  }
  if (manifest.format === FORMAT) return manifest
  throw failure('unsupported', `${path} has format ${manifest.format}; use a newer plugin`)
}

/** A point as the host is told of it. */
function pointOf (all, id) {
  const { job, vm, name, takenAt, disks } = manifestOf(all, id)
  using folder = all.folder(id)
  return {
    id,
    job,
    vm,
    name,
    takenAt: BigInt(takenAt),
    disks: disks.map(disk => ({ ...disk, size: BigInt(disk.size), stored: BigInt(disk.stored), extensions: [] })),
    held: folder.stat('held') !== undefined,
    damaged: folder.stat('damaged') && folder.read('damaged'),
    extensions: []
  }
}

/** Remembers what a verification found. */
function keepDamage (folder, found) {
  if (found.length > 0) {
    return folder.replace('damaged', `${found.length} faults, the first on disk ${found[0].disk}: ${found[0].message}`)
  }
  folder.remove('damaged')
  folder.sync()
}

/** The chunks in a group of a disk, by their offsets: files called after where they belong and what they are. */
function chunksOf (folder, group) {
  const chunks = new Map()
  if (folder.stat(group) === undefined) return chunks
  using inside = folder.folder(group)
  for (const { name: file } of inside.list()) {
    const [, offset, digest] = /^(\d+)-([0-9a-f]{64})\.zst$/.exec(file) ?? []
    if (digest) chunks.set(Number(offset), { offset: Number(offset), digest, file, path: `${group}/${file}` })
  }
  return chunks
}

/** Keeps a chunk, and answers how many bytes that took. */
function store (folder, chunk) {
  using payload = chunk.encode(ZSTD)
  using body = payload.body()
  folder.fill(`${chunk.offset()}-${chunk.digest().toHex()}.zst`, body, payload.length())
  return Number(payload.length())
}

/** Gives a chunk back. */
function put (restore, folder, { offset, digest, path }) {
  const filled = folder.pour(path, length => {
    // What the host would refuse to look at.
    if (length === 0n || length > 2 * CHUNK) throw failure('damaged', `${path} has ${length} bytes`)
    return restore.put(BigInt(offset), length, ZSTD, Uint8Array.fromHex(digest))
  })
  // Takes the stream away, so nobody else gives it back.
  restore.finish(filled)
}
