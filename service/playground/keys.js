// Shortcuts: single keys outside of fields, and the dialog that lists them and can switch them off, as
// who speaks to a computer needs (WCAG 2.1.4).

const FIELDS = "textarea, input:not([type=radio], [type=range])";
const OFF = "onestep-single-keys-off";
const dialog = document.getElementById("keys");
const singleKeys = document.getElementById("single-keys");

/** `actions` maps a key to what it does; "?" opens the list. */
export function listenForKeys(actions) {
  document.getElementById("show-keys").addEventListener("click", () => dialog.showModal());
  singleKeys.checked = !stored();
  singleKeys.addEventListener("change", () => store(!singleKeys.checked));
  addEventListener("keydown", (event) => {
    if (dialog.open || event.isComposing || event.altKey || event.target.matches(FIELDS)) return;
    // Undo has a name that everybody knows; all other combinations are the browser's.
    const isCombined = event.ctrlKey || event.metaKey;
    if (isCombined ? event.key !== "z" : !singleKeys.checked) return;
    const action = event.key === "?" ? () => dialog.showModal() : actions[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

// A browser may keep nothing for this page; then the choice lasts as long as the page.
function stored() {
  try {
    return localStorage.getItem(OFF) !== null;
  } catch {
    return false;
  }
}

function store(isOff) {
  try {
    if (isOff) localStorage.setItem(OFF, "");
    else localStorage.removeItem(OFF);
  } catch {
    // See above.
  }
}
