// Light or dark: as the system says, unless a person has chosen. Runs before the first paint.
const dark = matchMedia("(prefers-color-scheme: dark)");
const showTheme = () => {
  const chosen = localStorage.getItem("theme");
  document.documentElement.dataset.bsTheme = chosen ?? (dark.matches ? "dark" : "light");
};
showTheme();
dark.addEventListener("change", showTheme);
document.addEventListener("click", (event) => {
  if (event.target.id !== "theme") return;
  const now = document.documentElement.dataset.bsTheme;
  localStorage.setItem("theme", now === "dark" ? "light" : "dark");
  showTheme();
});
