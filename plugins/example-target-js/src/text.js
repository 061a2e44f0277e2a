// UTF-8, which the engine has no functions for: those for addresses do.

/** The text whose UTF-8 these bytes are. */
export const fromUtf8 = bytes => decodeURIComponent(bytes.toHex().replace(/../g, '%$&'))

/** UTF-8 of a text. */
export const toUtf8 = text => Uint8Array.from(unescape(encodeURIComponent(text)), letter => letter.charCodeAt(0))
