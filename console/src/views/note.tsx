// The note of one demo device: a text field, the other device's caret over it, and a conflict to decide.
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { type Choice, isConflict, movedCaret } from "../core/merge";
import type { Station } from "../demo/station";

export function NoteView({ station }: { station: Station }) {
  const { note, title, pair } = station;
  const field = useRef<HTMLTextAreaElement>(null);
  const mirror = useRef<HTMLDivElement>(null);
  const shown = useRef("");
  const { text, conflict, sent, base } = note.draft.value;
  const caret = note.caret.value;

  // Text that comes from elsewhere must not move the caret of whoever types here.
  useLayoutEffect(() => {
    const area = field.current;
    if (!area) return;
    if (area.value !== text) {
      const { selectionStart, selectionEnd, scrollTop } = area;
      const before = shown.current;
      area.value = text;
      if (document.activeElement === area) {
        area.setSelectionRange(movedCaret(before, text, selectionStart), movedCaret(before, text, selectionEnd));
      }
      area.scrollTop = scrollTop;
    }
    shown.current = text;
    if (mirror.current) mirror.current.scrollTop = area.scrollTop;
  }, [text]);

  const point = () => {
    const area = field.current;
    if (area && document.activeElement === area) note.point(area.selectionStart, area.selectionEnd);
  };
  const at = caret && Math.min(caret.at, text.length);
  return (
    <div class="note">
      <div class="note-head">
        <span>Note</span>
        <span class="saved">
          {conflict ? "needs you" : sent !== undefined || text !== base.text ? "not stored yet" : `stored, version ${base.version}`}
        </span>
      </div>
      <div class="paper">
        <div class="mirror" ref={mirror} aria-hidden="true">
          {at === undefined ? (
            text
          ) : (
            <>
              {text.slice(0, at)}
              <span class="caret" data-name={pair.other(station).side} />
              {text.slice(at)}
            </>
          )}
          {"\n"}
        </div>
        <textarea
          ref={field}
          aria-label={`Note on ${title}`}
          rows={6}
          spellcheck={false}
          readOnly={conflict !== undefined}
          onInput={(event) => {
            shown.current = event.currentTarget.value;
            note.type(event.currentTarget.value);
            point();
          }}
          onSelect={point}
          onKeyUp={point}
          onClick={point}
          onScroll={(event) => {
            if (mirror.current) mirror.current.scrollTop = event.currentTarget.scrollTop;
          }}
        />
      </div>
      {conflict && <ConflictView station={station} key={conflict.theirs.version} />}
    </div>
  );
}

const choiceWords: Record<Choice, string> = { mine: "This device’s", theirs: "The other’s", both: "Both" };

function ConflictView({ station }: { station: Station }) {
  const parts = station.note.draft.value.conflict?.parts.filter(isConflict) ?? [];
  const [choices, setChoices] = useState<(Choice | undefined)[]>(parts.map(() => undefined));
  const choose = (place: number, choice: Choice) => {
    const next = choices.map((known, at) => (at === place ? choice : known));
    setChoices(next);
    if (next.every((known) => known !== undefined)) station.note.decide(next as Choice[]);
  };
  return (
    <div class="conflict" role="group" aria-label={`Conflict on ${station.title}`}>
      <p role="alert">Both devices changed the same words. The server kept both apart; you decide.</p>
      {parts.map((part, place) => (
        <div class="place" key={place}>
          <pre class="mine">{part.mine.trimEnd() || "(nothing)"}</pre>
          <pre class="theirs">{part.theirs.trimEnd() || "(nothing)"}</pre>
          <div class="choices">
            {(["mine", "theirs", "both"] as const).map((choice) => (
              <button
                type="button"
                key={choice}
                aria-pressed={choices[place] === choice}
                onClick={() => choose(place, choice)}
              >
                {choiceWords[choice]}
              </button>
            ))}
          </div>
        </div>
      ))}
    </div>
  );
}
