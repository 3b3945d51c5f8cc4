// What a page asks the server for again and again, and what went wrong about it, in words.
import { useCallback, useEffect, useState } from "preact/hooks";
import { failureOf, inWords } from "./failure";

const EVERY_MS = 4_000;

/** Asks now, every four seconds, and when told to; `ask` has to be the same function each time. */
export function useRegularly<Answer>(ask: () => Promise<Answer>) {
  const [answer, setAnswer] = useState<Answer | undefined>(undefined);
  const [trouble, setTrouble] = useState("");
  const load = useCallback(async () => {
    try {
      setAnswer(await ask());
      setTrouble("");
    } catch (thrown) {
      setTrouble(inWords(failureOf(thrown)));
    }
  }, [ask]);
  useEffect(() => {
    void load();
    const again = setInterval(() => void load(), EVERY_MS);
    return () => clearInterval(again);
  }, [load]);
  return { answer, load, trouble, setTrouble };
}
