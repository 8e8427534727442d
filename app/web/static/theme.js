// The chosen colours, set before anything is drawn; a script of its own because the pages allow no inline one.
(() => {
  let theme = "auto";
  try {
    theme = localStorage.getItem("medpix-theme") ?? "auto";
  } catch {
    // No permission: the colours of the system.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
