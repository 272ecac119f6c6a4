import { history, historyKeymap, indentWithTab, standardKeymap } from "@codemirror/commands";
import { HighlightStyle, StreamLanguage, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { python } from "@codemirror/legacy-modes/mode/python";
import { EditorState } from "@codemirror/state";
import { EditorView, keymap, lineNumbers } from "@codemirror/view";
import { tags } from "@lezer/highlight";
import { useLayoutEffect, useRef, type RefObject } from "react";
import { json } from "./json";

const LANGUAGES = {
  python: StreamLanguage.define(python),
  json: StreamLanguage.define(json),
};

const COLOURS = HighlightStyle.define([
  { tag: tags.keyword, color: "var(--violet)" },
  { tag: [tags.string, tags.special(tags.string)], color: "var(--good)" },
  { tag: [tags.number, tags.bool, tags.null], color: "var(--warn)" },
  { tag: tags.comment, color: "var(--dim)" },
  { tag: [tags.propertyName, tags.definition(tags.variableName)], color: "var(--info)" },
]);

const LOOK = EditorView.theme({
  "&": { fontSize: "12.5px", minHeight: "7rem" },
  "&.cm-focused": { outline: "none" },
  ".cm-content": { caretColor: "var(--text)", fontFamily: "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" },
  ".cm-gutters": { backgroundColor: "var(--raised)", color: "var(--dim)", border: "0" },
});

/**
 * Code to be written. `onRun`: by Ctrl-Enter. Tab leaves the field after Escape, as in CodeMirror.
 *
 * `cursor`: the selection of a field that had the focus before this one came; `null`: it had not.
 */
export default function Editor({
  value,
  language,
  label,
  onChange,
  onRun,
  cursor,
}: {
  value: string;
  language: "python" | "json";
  label: string;
  onChange: (text: string) => void;
  onRun?: (() => void) | undefined;
  cursor: RefObject<[number, number] | null>;
}) {
  const place = useRef<HTMLDivElement>(null);
  const view = useRef<EditorView | null>(null);
  const told = useRef({ onChange, onRun });
  useLayoutEffect(() => {
    told.current = { onChange, onRun };
  });
  useLayoutEffect(() => {
    const host = place.current;
    if (host === null) return;
    // Its styles are made as it runs: in a root of its own they need no leave of the page's policy.
    const root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
    const made = new EditorView({
      parent: root,
      root,
      state: EditorState.create({
        doc: value,
        extensions: [
          lineNumbers(),
          history(),
          indentUnit.of(language === "python" ? "    " : "  "),
          LANGUAGES[language],
          syntaxHighlighting(COLOURS),
          LOOK,
          keymap.of([
            {
              key: "Mod-Enter",
              run: () => {
                told.current.onRun?.();
                return told.current.onRun !== undefined;
              },
            },
            ...standardKeymap,
            ...historyKeymap,
            indentWithTab,
          ]),
          EditorView.contentAttributes.of({ "aria-label": label }),
          EditorView.lineWrapping,
          EditorView.updateListener.of((update) => {
            if (update.docChanged) told.current.onChange(update.state.doc.toString());
          }),
        ],
      }),
    });
    view.current = made;
    if (cursor.current !== null) {
      const [anchor, head] = cursor.current.map((place) => Math.min(place, made.state.doc.length)) as [number, number];
      cursor.current = null;
      made.dispatch({ selection: { anchor, head } });
      made.focus();
    }
    return () => made.destroy();
    // eslint-disable-next-line react-hooks/exhaustive-deps
  }, [language, label]);
  // Before anybody can write more: a later effect would put an older text in the place of what was written meanwhile.
  useLayoutEffect(() => {
    const made = view.current;
    if (made !== null && made.state.doc.toString() !== value)
      made.dispatch({ changes: { from: 0, to: made.state.doc.length, insert: value } });
  }, [value]);
  return <div ref={place} className="editor" />;
}
