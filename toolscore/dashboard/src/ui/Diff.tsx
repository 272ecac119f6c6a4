import { visible } from "./text";

const SHOWN_LINES = 2000;

/** A unified diff, each line in its colour. */
export function DiffView({ diff }: { diff: string }) {
  const lines = diff.split("\n");
  return (
    <pre className="diff" tabIndex={0} aria-label="difference">
      {lines.slice(0, SHOWN_LINES).map((line, index) => (
        <span key={index} className={line.startsWith("+") ? "added" : line.startsWith("-") ? "removed" : line.startsWith("@@") ? "place" : ""}>
          {visible(line)}
          {"\n"}
        </span>
      ))}
      {lines.length > SHOWN_LINES && `… ${lines.length - SHOWN_LINES} lines more`}
    </pre>
  );
}
