export type Theme = "system" | "dark" | "light";

const STORED = "toolscore.theme";

/** The theme that was chosen; `system` follows the machine. */
export function storedTheme(): Theme {
  try {
    const stored = localStorage.getItem(STORED);
    return stored === "dark" || stored === "light" ? stored : "system";
  } catch {
    return "system";
  }
}

/** Shows the page in a theme, and remembers it. */
export function setTheme(theme: Theme): void {
  document.documentElement.dataset["theme"] = theme;
  try {
    if (theme === "system") localStorage.removeItem(STORED);
    else localStorage.setItem(STORED, theme);
  } catch {
    // it counts for this page alone
  }
}
