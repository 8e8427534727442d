// Addresses of this service, which a proxy may serve below a path of its own.

const { prefix } = document.documentElement.dataset;

/** An address for this page. `path`: from the root of the service. */
export const at = (path) => `${prefix}${path}`;
