// Errors as the contract has them. What is thrown with a `payload` is a call's answer; whatever else is thrown ends it.

/** Kinds of failure that the contract names; any other has its name in `other`. */
const CODES = ['config', 'unavailable', 'denied', 'not-found', 'limit', 'unsupported']

/** An error for the host, with a sentence for an operator; `retryAfter` in seconds, where asking again may help. */
export function failure (kind, message, retryAfter) {
  const code = CODES.includes(kind) ? { tag: kind } : { tag: 'other', val: kind }
  return Object.assign(new Error(message), { payload: { code, message, retryAfter, extensions: [] } })
}

/** Whether something is not there. */
export const isMissing = ({ payload }) => payload?.code?.tag === 'not-found'

/** Whether stored bytes are not what was stored, in the plugin's words or the host's. */
export const isDamaged = ({ payload }) => payload?.code?.tag === 'other' && payload.code.val === 'damaged'
