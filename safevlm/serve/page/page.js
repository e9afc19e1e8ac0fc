// Says to a screen reader and a keyboard what Gradio says to the eye alone.
(() => {
  const put = (each, name, value) => {
    if (each && each.getAttribute(name) !== value) each.setAttribute(name, value);
  };
  const all = (where, what) => document.querySelectorAll(where).forEach(what);
  const mend = () => {
    put(document.documentElement, "lang", "en");
    all("#question textarea", (each) => {
      put(each, "aria-label", "Your question");
      put(each, "placeholder", "Ask about an image …"); // Gradio takes it away with the first question
    });
    all("#question [data-testid=submit-button]", (each) => put(each, "aria-label", "Send"));
    all("#question [data-testid=stop-button]", (each) => put(each, "aria-label", "Stop"));
    all("#question [data-testid=upload-button]", (each) => put(each, "aria-label", "Add images"));
    all("#conversation [data-testid=bot], #conversation [data-testid=user]", (each) => each.removeAttribute("aria-label"));
    all("#conversation .user.message .image-container button", (each) => put(each, "aria-label", "Enlarge the image"));
    all("#conversation .user.message .image-container img", (each) => put(each, "alt", "the image of this question"));
    all("#conversation .example-image", (each) => put(each, "alt", ""));
    all("#conversation .thought-group > .title", (each) => {
      put(each, "aria-expanded", String(each.classList.contains("expanded")));
      put(each.querySelector(".arrow button"), "tabindex", "-1");
      put(each.querySelector(".arrow"), "aria-hidden", "true");
    });
    const log = document.querySelector("#conversation [role=log]");
    put(log, "aria-label", "Conversation");
    put(log, "tabindex", "0");
    if (log) put(log, "aria-busy", String(log.querySelector(".loading-spinner") !== null));
  };
  let isAsked = false;
  new MutationObserver(() => {
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      mend();
    });
  }).observe(document, { subtree: true, childList: true, attributeFilter: ["class", "aria-label", "alt"] });
  document.addEventListener("keydown", (event) => {
    if (event.key === " " && event.target.matches?.(".thought-group > .title")) {
      event.preventDefault();
      event.target.click();
    }
  });
})();
