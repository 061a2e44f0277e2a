// Files and folders of the operator, and errors that say which of them it was.

import { filesystemErrorCode } from 'wasi:filesystem/types@0.2.12'
import { getDirectories } from 'wasi:filesystem/preopens@0.2.12'
import { failure, isMissing } from './errors.js'

/** A folder. Names are those of entries in it, or paths below it. */
export class Folder {
  #handle
  #path

  constructor (handle, path) {
    this.#handle = handle
    this.#path = path
  }

  /** A folder that was granted, or one inside of such a one, by its absolute path. */
  static open (path) {
    for (const [granted, root] of getDirectories()) {
      const inside = `${path}/`.startsWith(root.endsWith('/') ? root : `${root}/`)
      const below = path.slice(root.length).replace(/^\/+|\/+$/g, '')
      if (!inside) continue
      using folder = new Folder(granted, root)
      return folder.folder(below || '.')
    }
    const line = `folders = [${JSON.stringify(path)}]`
    throw failure('denied', `the folder ${path} was not granted; to allow it, add to the plugin's grants: ${line}`)
  }

  [Symbol.dispose] () {
    this.#handle[Symbol.dispose]()
  }

  folder (name) {
    const flags = { read: true, mutateDirectory: true }
    const handle = this.#try('open', name, () => this.#handle.openAt({}, name, { directory: true }, flags))
    return new Folder(handle, this.#pathOf(name))
  }

  /** Makes a folder, or opens the one that is there. */
  createFolder (name) {
    this.#try('make', name, () => {
      try {
        this.#handle.createDirectoryAt(name)
      } catch (problem) {
        if (problem.payload !== 'exist') throw problem
      }
    })
    return this.folder(name)
  }

  /** What is in it: `name` and `type` of each. */
  list () {
    return this.#try('list', '.', () => {
      using stream = this.#handle.readDirectory()
      const entries = []
      for (let entry; (entry = stream.readDirectoryEntry());) entries.push(entry)
      return entries
    })
  }

  /** `type`, `size` and `linkCount` of an entry; undefined where there is none. */
  stat (name) {
    try {
      return this.#try('look at', name, () => this.#handle.statAt({}, name))
    } catch (problem) {
      if (isMissing(problem)) return undefined
      throw problem
    }
  }

  /** Makes a file of `length` bytes of a stream, which do not come here, and has it survive a power failure. */
  fill (name, input, length) {
    this.#create(name, output => splice(output, input, length))
  }

  /** Moves a file into the stream that `open` makes for its length, and answers that stream. */
  pour (name, open) {
    using file = this.#try('open', name, () => this.#handle.openAt({}, name, {}, { read: true }))
    const { size } = this.#try('look at', name, () => file.stat())
    using input = this.#try('read', name, () => file.readViaStream(0n))
    const output = open(size)
    this.#try('read', name, () => splice(output, input, size))
    return output
  }

  /** The text in a file. */
  read (name) {
    return this.#try('read', name, () => {
      using file = this.#handle.openAt({}, name, {}, { read: true })
      const bytes = new Uint8Array(Number(file.stat().size))
      for (let at = 0, end = false; !end && at < bytes.length;) {
        const [piece, ended] = file.read(BigInt(bytes.length - at), BigInt(at))
        bytes.set(piece, at)
        at += piece.length
        end = ended
      }
      return new TextDecoder().decode(bytes)
    })
  }

  /** Puts a text into a file; whoever reads it, also after a power failure, finds what was there before, or this. */
  replace (name, text) {
    const draft = `${name}.new`
    this.#create(draft, output => {
      for (let left = new TextEncoder().encode(text); left.length > 0; left = left.subarray(4096)) {
        output.blockingWriteAndFlush(left.subarray(0, 4096))
      }
    })
    this.rename(draft, name)
    this.sync()
  }

  /** Gives a file a name in another folder as well. */
  link (from, folder, to) {
    this.#try('link', from, () => this.#handle.linkAt({}, from, folder.#handle, to))
  }

  rename (from, to) {
    this.#try('rename', from, () => this.#handle.renameAt(from, this.#handle, to))
  }

  /** Removes a file, or a folder with what is in it. One that is not there is no error. */
  remove (name) {
    switch (this.stat(name)?.type) {
      case undefined:
        return
      case 'directory': {
        using folder = this.folder(name)
        for (const entry of folder.list()) folder.remove(entry.name)
        return this.#try('remove', name, () => this.#handle.removeDirectoryAt(name))
      }
      default:
        return this.#try('remove', name, () => this.#handle.unlinkFileAt(name))
    }
  }

  /** Bytes that removing an entry gives back: those of files that have no other name. */
  size (name) {
    const stat = this.stat(name)
    if (stat?.type !== 'directory') return stat?.linkCount === 1n ? stat.size : 0n
    using folder = this.folder(name)
    return folder.list().reduce((sum, entry) => sum + folder.size(entry.name), 0n)
  }

  /** Has the names in it survive a power failure. */
  sync () {
    this.#try('sync', '.', () => this.#handle.sync())
  }

  #pathOf (name) {
    return name === '.' ? this.#path : `${this.#path}/${name}`
  }

  #create (name, write) {
    this.#try('write', name, () => {
      using file = this.#handle.openAt({}, name, { create: true, truncate: true }, { write: true })
      using output = file.writeViaStream(0n)
      write(output)
      file.sync()
    })
  }

  /** Does something; where the file system refuses, says what was tried on what. */
  #try (action, name, work) {
    try {
      return work()
    } catch (problem) {
      const why = fileSystemsWord(problem.payload)
      if (why === undefined) throw problem
      const cannot = `cannot ${action} ${this.#pathOf(name)}`
      switch (why) {
        case 'no-entry':
          throw failure('not-found', `${cannot}: it does not exist`)
        case 'insufficient-space':
        case 'quota':
          throw failure('unavailable', `${cannot}: the storage is full; make room or let retention keep less`, 60n)
        case 'access':
        case 'not-permitted':
        case 'read-only':
          throw failure('denied', `${cannot}: ${why}; let the user that vmferry runs as write there`)
        default:
          throw failure('unavailable', `${cannot}: ${why}`, 60n)
      }
    }
  }
}

/** Moves bytes from stream to stream. They stay with the host. */
function splice (output, input, length) {
  for (let left = length; left > 0n;) left -= output.blockingSplice(input, left)
}

/** What an error says of a file, if it does: a name of the file system's, or that of the stream of a file. */
function fileSystemsWord (payload) {
  switch (payload?.tag) {
    case undefined:
      return typeof payload === 'string' ? payload : undefined
    case 'closed':
      return 'it ended too early'
    case 'last-operation-failed':
      return filesystemErrorCode(payload.val) ?? payload.val.toDebugString()
  }
}
