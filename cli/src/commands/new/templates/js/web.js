// Answers HTTP requests, as a service worker does: a fresh instance for each.

addEventListener('fetch', (event) => {
  const { pathname } = new URL(event.request.url);
  event.respondWith(new Response(`hello from {{name}} at ${pathname}\n`));
});
