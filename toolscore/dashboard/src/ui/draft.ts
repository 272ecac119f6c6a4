import { useEffect, useRef, useState } from "react";

/**
 * What is written in a field before it counts.
 *
 * `value`: what counts, also where another than this field changes it. `onChange` hears of what `settle` makes count.
 */
export function useDraft(value: string | undefined, onChange: (value: string | undefined) => void) {
  const [typed, setTyped] = useState(value ?? "");
  const known = useRef(value);
  useEffect(() => {
    if (known.current === value) return;
    known.current = value;
    setTyped(value ?? "");
  }, [value]);
  const settle = () => {
    const next = typed.trim() || undefined;
    if (next === known.current) return;
    known.current = next;
    onChange(next);
  };
  return { typed, setTyped, settle };
}
