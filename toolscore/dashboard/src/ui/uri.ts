/* What the form's helper needs of URIs: the browser has it. It stands in for a library of 8 KB. */

const NOWHERE = "toolscore://schema/";

/** A reference against the URI that it stands in. */
export function resolve(base: string, reference: string): string {
  try {
    return new URL(reference, new URL(base, NOWHERE)).href.replace(NOWHERE, "");
  } catch {
    return reference;
  }
}

/** Whether two references name the same place. */
export function equal(one: string, other: string): boolean {
  return resolve("", one) === resolve("", other);
}

export default { equal, resolve };
