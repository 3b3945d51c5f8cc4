// Three-way merge of text: what two devices made of one base.
//
// Lines first. Where both changed the same lines, their words; only what is left after that is a
// conflict, and a person decides it. Pure.
import { diff3Merge } from "node-diff3";

/** Lines that both sides changed, each in its own way. */
export interface Conflict {
  base: string;
  mine: string;
  theirs: string;
}

export type Part = string | Conflict;

export const isConflict = (part: Part): part is Conflict => typeof part !== "string";

/** The merged text in parts; without conflicts it is one string. */
export function mergeText(base: string, mine: string, theirs: string): Part[] {
  if (mine === theirs || theirs === base) return [mine];
  if (mine === base) return [theirs];
  const parts: Part[] = [];
  const put = (part: Part) => {
    const last = parts.length - 1;
    if (typeof part === "string" && typeof parts[last] === "string") parts[last] += part;
    else parts.push(part);
  };
  for (const region of diff3Merge(lines(mine), lines(base), lines(theirs), { excludeFalseConflicts: true })) {
    if (region.ok) put(region.ok.join(""));
    else if (region.conflict) {
      const { a, o, b } = region.conflict;
      // Line by line where the lines still correspond, so that a person is asked about as little as can be.
      if (a.length === o.length && b.length === o.length) {
        o.forEach((base, line) => put(mergeLine({ base, mine: a[line] ?? "", theirs: b[line] ?? "" })));
      } else put(mergeLine({ base: o.join(""), mine: a.join(""), theirs: b.join("") }));
    }
  }
  return parts;
}

function mergeLine(conflict: Conflict): Part {
  const { base, mine, theirs } = conflict;
  if (mine === theirs || theirs === base) return mine;
  if (mine === base) return theirs;
  // Two texts put where there was none are not for us to order.
  if (base.trim() === "") return conflict;
  const merged = diff3Merge(wordsOf(mine), wordsOf(base), wordsOf(theirs), { excludeFalseConflicts: true });
  if (merged.some((region) => region.conflict)) return conflict;
  return merged.flatMap((region) => region.ok ?? []).join("");
}

/** Lines with their ends, so that joining gives the text back. */
const lines = (text: string): string[] => text.match(/[^\n]*\n|[^\n]+$/g) ?? [];

const wordsOf = (text: string): string[] => text.match(/\s+|[\p{L}\p{N}]+|[^\s\p{L}\p{N}]/gu) ?? [];

export type Choice = "mine" | "theirs" | "both";

/** The text that a person's choices make of the parts. */
export function settle(parts: readonly Part[], choices: readonly Choice[]): string {
  let next = 0;
  return parts
    .map((part) => {
      if (!isConflict(part)) return part;
      const choice = choices[next++] ?? "mine";
      if (choice === "both") return `${ended(part.mine)}${part.theirs}`;
      return part[choice];
    })
    .join("");
}

const ended = (text: string): string => (text === "" || text.endsWith("\n") ? text : `${text}\n`);

/** Where a caret at `at` in `before` belongs in `after`. */
export function movedCaret(before: string, after: string, at: number): number {
  let start = 0;
  const shorter = Math.min(before.length, after.length);
  while (start < shorter && before[start] === after[start]) start++;
  if (at <= start) return at;
  let end = 0;
  while (end < shorter - start && before[before.length - 1 - end] === after[after.length - 1 - end]) end++;
  if (at >= before.length - end) return at + after.length - before.length;
  return Math.min(at, after.length - end);
}
