// A text that is edited here while others edit it, too.
//
// It knows the version that the server confirmed last (`base`) and what the person typed since. What
// comes from elsewhere is merged in three ways; where both changed the same words it stops sending
// and waits for the person. Every write names its base version, so the server never lets one text
// silently replace another. Pure: whoever owns it sends and tells it what came back.
import { type Choice, isConflict, mergeText, type Part, settle } from "./merge";

export interface Confirmed {
  text: string;
  version: number;
}

export interface Draft {
  base: Confirmed;
  text: string;
  /** What is on its way to the server. */
  sent: string | undefined;
  /** Waits for a decision: the merged parts, and what they were merged with. */
  conflict: { parts: Part[]; theirs: Confirmed } | undefined;
}

export const draftOf = (base: Confirmed): Draft => ({ base, text: base.text, sent: undefined, conflict: undefined });

/** The person typed. While a conflict waits, nothing can be typed. */
export const typed = (draft: Draft, text: string): Draft => (draft.conflict ? draft : { ...draft, text });

/** What should be written now, and on which version. */
export function toSend(draft: Draft): { text: string; baseVersion: number } | undefined {
  if (draft.conflict || draft.sent !== undefined || draft.text === draft.base.text) return undefined;
  return { text: draft.text, baseVersion: draft.base.version };
}

/** The write is on its way. */
export const sending = (draft: Draft, text: string): Draft => ({ ...draft, sent: text });

/** The write was applied as `version`. */
export function confirmed(draft: Draft, version: number): Draft {
  const text = draft.sent ?? draft.text;
  const next = { ...draft, sent: undefined };
  return version > draft.base.version ? { ...next, base: { text, version } } : next;
}

/** The write was not applied; what is there instead comes by `received`. */
export const notApplied = (draft: Draft): Draft => ({ ...draft, sent: undefined });

/**
 * The server has `theirs`. `merged` tells whether both sides' work was put together. `anew`: the
 * server's past may be another than the one we knew, so its versions count from elsewhere.
 */
export function received(draft: Draft, theirs: Confirmed, anew = false): { draft: Draft; merged: boolean } {
  const known = draft.conflict?.theirs.version ?? draft.base.version;
  if (theirs.version === known || (theirs.version < known && !anew)) return { draft, merged: false };
  const { base, text } = draft;
  const parts = mergeText(base.text, text, theirs.text);
  if (parts.some(isConflict)) return { draft: { ...draft, conflict: { parts, theirs } }, merged: false };
  const result = parts.join("");
  const merged = text !== base.text && result !== text && result !== theirs.text;
  return { draft: { ...draft, base: theirs, text: result, conflict: undefined }, merged };
}

/** The person decided each place. */
export function decided(draft: Draft, choices: readonly Choice[]): Draft {
  if (!draft.conflict) return draft;
  const { parts, theirs } = draft.conflict;
  return { ...draft, base: theirs, text: settle(parts, choices), conflict: undefined };
}
