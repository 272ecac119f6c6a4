import { Suspense, lazy, useLayoutEffect, useRef, type ComponentProps, type RefObject } from "react";
import type EditorType from "./Editor";

const Editor = lazy(() => import("./Editor"));

type Props = Omit<ComponentProps<typeof EditorType>, "cursor">;
type Cursor = RefObject<[number, number] | null>;

/** A field for code; it can be written to before the editor has come, and the cursor stays where it is as it comes. */
export function Code(props: Props) {
  const cursor: Cursor = useRef(null);
  return (
    <Suspense fallback={<Plain {...props} cursor={cursor} />}>
      <Editor {...props} cursor={cursor} />
    </Suspense>
  );
}

function Plain({ label, value, onChange, cursor }: Props & { cursor: Cursor }) {
  const place = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => {
    const field = place.current;
    return () => {
      if (field !== null && field === document.activeElement) cursor.current = [field.selectionStart, field.selectionEnd];
    };
  }, [cursor]);
  return <textarea ref={place} className="editor" aria-label={label} value={value} onChange={(event) => onChange(event.target.value)} />;
}
