/* Whatever a server sends is shown as text, and as what it is: nothing in it is hidden, and nothing turns around. */

const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const INVISIBLE = /[\u200b\u2060\u2061-\u2064\ufeff\u00ad\u{e0000}-\u{e007f}]/gu;
// eslint-disable-next-line no-control-regex
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

/** A text with what is invisible, or changes the direction, written out: `⟨U+202E⟩`, `␛`. */
export function visible(text: string): string {
  return text
    .replaceAll("\r\n", "\n")
    .replace(CONTROL, (one) => (one.charCodeAt(0) < 0x20 ? String.fromCharCode(0x2400 + one.charCodeAt(0)) : named(one)))
    .replace(BIDI, named)
    .replace(INVISIBLE, named);
}

function named(character: string): string {
  return `⟨U+${(character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

/** The beginning of a text, for one line. */
export function oneLine(text: string, most = 200): string {
  const flat = visible(text.slice(0, most * 4)).replace(/\s+/g, " ").trim();
  return flat.length > most ? `${flat.slice(0, most)}…` : flat;
}

const units = ["B", "KB", "MB", "GB", "TB"];

/** `1.5 MB`. */
export function bytes(count: number | null | undefined): string {
  if (count === null || count === undefined) return "–";
  let value = count;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** `12.3 ms`, `4.56 s`, `3 min`. */
export function duration(milliseconds: number | null | undefined): string {
  if (milliseconds === null || milliseconds === undefined) return "–";
  if (milliseconds < 1) return `${milliseconds.toFixed(2)} ms`;
  if (milliseconds < 100) return `${milliseconds.toFixed(1)} ms`;
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

/** `1,234`. */
export function number(value: number | null | undefined): string {
  return value === null || value === undefined ? "–" : value.toLocaleString("en");
}

/** `2 tools`, `1 tool`. */
export function counted(count: number, one: string, many = `${one}s`): string {
  return `${number(count)} ${count === 1 ? one : many}`;
}

/** `97 %`. */
export function percent(share: number | null | undefined): string {
  return share === null || share === undefined ? "–" : `${Math.round(share * 100)} %`;
}

/** `3 min ago`. */
export function ago(moment: string | null | undefined, now: number): string {
  if (!moment) return "–";
  const passed = now - Date.parse(moment);
  return passed < 1000 ? "just now" : `${duration(passed).replace(/\.\d+ s/, " s")} ago`;
}

/** `15:04:05.123`, in the reader's time zone. */
export function clock(moment: string): string {
  const date = new Date(moment);
  const two = (value: number): string => String(value).padStart(2, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

const SAID = "; it said: ";

/** A server's error with what its program said first: in a short place the cause is what one wants to read. */
export function causeFirst(error: string): string {
  const at = error.indexOf(SAID);
  return at < 0 ? error : `${error.slice(at + SAID.length)} (${error.slice(0, at)})`;
}
