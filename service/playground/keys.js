// Shortcuts: single keys outside of fields, and the dialog that lists them.

const FIELDS = "textarea, input:not([type=radio], [type=range])";
const dialog = document.getElementById("keys");

/** `actions` maps a key to what it does; "?" opens the list. */
export function listenForKeys(actions) {
  document.getElementById("show-keys").addEventListener("click", () => dialog.showModal());
  addEventListener("keydown", (event) => {
    if (dialog.open || event.isComposing || event.altKey || event.target.matches(FIELDS)) return;
    // Undo has a name that everybody knows; all other combinations are the browser's.
    if ((event.ctrlKey || event.metaKey) && event.key !== "z") return;
    const action = event.key === "?" ? () => dialog.showModal() : actions[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
