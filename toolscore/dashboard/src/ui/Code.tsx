import { Suspense, lazy, type ComponentProps } from "react";
import type EditorType from "./Editor";

const Editor = lazy(() => import("./Editor"));

/** A field for code; it can be written to before the editor has come. */
export function Code(props: ComponentProps<typeof EditorType>) {
  return (
    <Suspense
      fallback={
        <textarea
          className="editor"
          aria-label={props.label}
          value={props.value}
          onChange={(event) => props.onChange(event.target.value)}
        />
      }
    >
      <Editor {...props} />
    </Suspense>
  );
}
