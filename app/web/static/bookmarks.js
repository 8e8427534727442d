// Saved views and bookmarked cases, kept in this browser only.

const STORED = "medpix-saved";
const MOST = 1000;
const isText = (value) => typeof value === "string" && value.length < 2000;

/** Only what this page itself could have saved: the file of an import may hold anything. */
export function checked(saved) {
  const list = (value, isGood) => (Array.isArray(value) ? value.filter((each) => each && isGood(each)).slice(0, MOST) : []);
  return {
    views: list(saved?.views, ({ name, query }) => isText(name) && isText(query) && (query === "" || query.startsWith("?"))),
    bookmarks: list(saved?.bookmarks, ({ u_id: id, title }) => /^MPX\d{4,8}$/.test(id) && (title === null || isText(title))),
  };
}

export function readSaved() {
  try {
    return checked(JSON.parse(localStorage.getItem(STORED) ?? "{}"));
  } catch {
    return checked({});
  }
}

/** Keep what was saved; false where the browser does not allow it. */
export function keep(saved) {
  try {
    localStorage.setItem(STORED, JSON.stringify(saved));
    return true;
  } catch {
    return false;
  }
}

const isBookmarked = (uId) => readSaved().bookmarks.some((each) => each.u_id === uId);

/** Bookmark a case, or take its bookmark away. `title`: null where it is not to be seen. */
export function toggleBookmark(uId, title) {
  const saved = readSaved();
  const others = saved.bookmarks.filter((each) => each.u_id !== uId);
  const isNew = others.length === saved.bookmarks.length;
  return keep({ ...saved, bookmarks: isNew ? [{ u_id: uId, title }, ...others] : others });
}

/** The button of a case. */
export function showBookmark(button, uId) {
  const isOn = isBookmarked(uId);
  button.setAttribute("aria-pressed", String(isOn));
  button.textContent = isOn ? "★ Bookmarked" : "☆ Bookmark";
}
