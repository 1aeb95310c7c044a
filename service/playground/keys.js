// Shortcuts: single keys outside of fields, and the dialog that lists them.

const dialog = document.getElementById("keys");

/** `actions` maps a key to what it does; "?" opens the list. */
export function listenForKeys(actions) {
  document.getElementById("show-keys").addEventListener("click", () => dialog.showModal());
  addEventListener("keydown", (event) => {
    if (dialog.open || event.isComposing || event.altKey) return;
    const isField = event.target.matches("textarea, input:not([type=radio], [type=range]), canvas");
    const isCommand = event.ctrlKey || event.metaKey;
    if (isField || (isCommand && event.key !== "z")) {
      if (!(isCommand && event.key === "z" && event.target.matches("canvas"))) return;
    }
    const action = event.key === "?" ? () => dialog.showModal() : actions[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
