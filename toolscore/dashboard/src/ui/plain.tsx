import type { ReactNode } from "react";
import { visible } from "./text";

/** What the form would read as Markdown, as the text that it is. */
export function Markdown({ children }: { children?: ReactNode }) {
  return <>{typeof children === "string" ? visible(children) : children}</>;
}

export default Markdown;
