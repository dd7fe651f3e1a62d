// The page to try the API: Swagger UI on this server's own document. Nothing is sent anywhere else.
const page = document.getElementById("api");
SwaggerUIBundle({
  url: page.dataset.document,
  domNode: page,
  deepLinking: true,
  persistAuthorization: false,
  validatorUrl: null,
});
