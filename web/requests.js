// Requests to the server that change something.
import { api } from "/scripts/api.js";

/** @param {string} route @param {object} content Sent as JSON. @returns {Promise<Response>} */
export function post(route, content) {
  const headers = { "Content-Type": "application/json" };
  return api.fetchApi(route, { method: "POST", headers, body: JSON.stringify(content) });
}
