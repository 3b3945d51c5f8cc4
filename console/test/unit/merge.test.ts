// What two devices made of one text, as tables.
import { describe, expect, it } from "vitest";
import { confirmed, decided, draftOf, received, sending, toSend, typed } from "../../src/core/draft";
import { isConflict, mergeText, movedCaret, settle } from "../../src/core/merge";

const base = "Trip\nTrain at 9:15, platform 4\nPack: charger\n";

describe("mergeText", () => {
  it.each([
    ["only mine", base.replace("Trip", "Big trip"), base, base.replace("Trip", "Big trip")],
    ["only theirs", base, base.replace("Trip", "Big trip"), base.replace("Trip", "Big trip")],
    ["both alike", "same", "same", "same"],
    [
      "different lines",
      base.replace("Trip", "Big trip"),
      base.replace("charger", "charger, hat"),
      "Big trip\nTrain at 9:15, platform 4\nPack: charger, hat\n",
    ],
    [
      "different words of one line",
      base.replace("9:15", "9:45"),
      base.replace("platform 4", "platform 7"),
      "Trip\nTrain at 9:45, platform 7\nPack: charger\n",
    ],
  ])("puts together %s", (_, mine, theirs, merged) => {
    expect(mergeText(base, mine, theirs)).toEqual([merged]);
  });

  it("leaves the same words to a person, and only those", () => {
    const parts = mergeText(base, base.replace("9:15", "10:00"), base.replace("9:15", "11:30").replace("Trip", "Tour"));
    expect(parts.filter(isConflict)).toEqual([
      {
        base: "Train at 9:15, platform 4\n",
        mine: "Train at 10:00, platform 4\n",
        theirs: "Train at 11:30, platform 4\n",
      },
    ]);
    expect(parts[0]).toBe("Tour\n");
  });

  it("does not order two texts that were put in one place", () => {
    const parts = mergeText("a\n", "a\nmine\n", "a\ntheirs\n");
    expect(parts.filter(isConflict)).toHaveLength(1);
    expect(settle(parts, ["both"])).toBe("a\nmine\ntheirs\n");
    expect(settle(parts, ["theirs"])).toBe("a\ntheirs\n");
  });
});

describe("a draft", () => {
  const start = () => draftOf({ text: base, version: 3 });

  it("sends on the version it was typed on, one write at a time", () => {
    const draft = typed(start(), `${base}more`);
    expect(toSend(draft)).toEqual({ text: `${base}more`, baseVersion: 3 });
    const sent = typed(sending(draft, draft.text), `${base}more and more`);
    expect(toSend(sent)).toBeUndefined();
    expect(toSend(confirmed(sent, 4))).toEqual({ text: `${base}more and more`, baseVersion: 4 });
  });

  it("merges what comes from elsewhere into what was typed", () => {
    const { draft, merged } = received(typed(start(), base.replace("Trip", "Tour")), {
      text: base.replace("charger", "hat"),
      version: 4,
    });
    expect(merged).toBe(true);
    expect(toSend(draft)).toEqual({ text: base.replace("Trip", "Tour").replace("charger", "hat"), baseVersion: 4 });
  });

  it("asks the person about the same words, then sends what was decided", () => {
    const theirs = { text: base.replace("9:15", "11:30"), version: 5 };
    const { draft } = received(typed(start(), base.replace("9:15", "10:00")), theirs);
    expect(draft.conflict).toBeDefined();
    expect(toSend(draft)).toBeUndefined();
    const after = decided(draft, ["mine"]);
    expect(toSend(after)).toEqual({ text: base.replace("9:15", "10:00"), baseVersion: 5 });
    expect(toSend(decided(draft, ["theirs"]))).toBeUndefined();
  });

  it("takes its own lost write back as its own", () => {
    const draft = sending(typed(start(), "mine"), "mine");
    const back = received(draft, { text: "mine", version: 4 });
    expect(back.draft.conflict).toBeUndefined();
    expect(toSend(confirmed(back.draft, 4))).toBeUndefined();
  });

  it("ignores what is older than what it knows", () => {
    const draft = start();
    expect(received(draft, { text: "old", version: 2 }).draft).toBe(draft);
  });
});

describe("a caret", () => {
  it.each([
    ["stays before a change", "abc def", "abc xdef", 2, 2],
    ["moves behind an insertion", "abc def", "xx abc def", 5, 8],
    ["moves back behind a deletion", "abc def", "def", 6, 2],
    ["stays inside the text", "abcdef", "ab", 5, 2],
  ])("%s", (_, before, after, at, expected) => {
    expect(movedCaret(before, after, at)).toBe(expected);
  });
});
