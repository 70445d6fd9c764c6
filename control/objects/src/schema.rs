//! Facts of the Kubernetes API schema: how each list or map field merges, and which schema its elements have.
//!
//! Strategic merge, server-side apply and the OpenAPI extensions are driven by these.

mod edges;
mod merge;
