// A details element as a menu: it closes on Esc and on a click elsewhere.

/** `onOpen` is called whenever the menu opens. */
export function setUpMenu(root, onOpen) {
  root.addEventListener("toggle", () => root.open && onOpen());
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !root.open) return;
    event.preventDefault();
    root.open = false;
    root.querySelector("summary").focus();
  });
  document.addEventListener("click", (event) => {
    // What was clicked may be gone already.
    if (root.open && document.contains(event.target) && !root.contains(event.target)) root.open = false;
  });
}
