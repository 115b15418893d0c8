"""The API described for machines: an OpenAPI 3.1 document made from the routes and their types."""
