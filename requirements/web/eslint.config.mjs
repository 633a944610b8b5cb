import js from "@eslint/js";
import globals from "globals";

export default [
  js.configs.recommended,
  {
    files: ["**/*.js"],
    languageOptions: { ecmaVersion: 2023, globals: globals.browser },
    rules: {
      complexity: ["error", 12],
      "max-lines": ["error", 300],
      "max-lines-per-function": ["error", 60],
      eqeqeq: "error",
      "prefer-const": "error",
      "no-var": "error",
    },
  },
];
