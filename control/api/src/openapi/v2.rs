//! `/openapi/v2` for old clients: which objects can be patched with `dryRun` and `fieldValidation`, and no more.
//!
//! kubectl up to 1.27 looks here, in the protobuf form of gnostic's `OpenAPIv2.proto`, whether a dry run is safe
//! (`kubectl diff`). Schemas are in the v3 documents only.

use coracle_objects::Catalog;

/// The media type of the only form that is served, without its version's punctuation.
const MEDIA_TYPES: &[&str] = &[
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];

/// Whether a client accepts the form.
pub fn accepts(media_type: &str) -> bool {
    MEDIA_TYPES.contains(&media_type)
}

/// The Content-Type of the document.
pub const CONTENT_TYPE: &str = MEDIA_TYPES[1];

/// The document: `Document { swagger = 1, info = 2, paths = 8 }`.
pub fn document(catalog: &Catalog) -> Vec<u8> {
    let mut paths = Vec::new();
    for kind in catalog.kinds().iter().filter(|kind| kind.takes("patch")) {
        let base = if kind.group.is_empty() { "/api" } else { "/apis" };
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let path = format!("{base}/{}{scope}/{}/{{name}}", kind.api_version(), kind.plural);
        let gvk = format!("group: {:?}\nkind: {:?}\nversion: {:?}\n", kind.group, kind.kind, kind.version);
        // Operation { parameters = 8, vendor_extension = 13 } in PathItem.patch = 8, named in Paths.path = 2.
        let extension = [text(1, "x-kubernetes-group-version-kind"), field(2, &text(2, &gvk))].concat();
        let operation = [
            field(8, &query_parameter("dryRun")),
            field(8, &query_parameter("fieldValidation")),
            field(13, &extension),
        ]
        .concat();
        paths.extend(field(2, &[text(1, &path), field(2, &field(8, &operation))].concat()));
    }
    let info = [text(1, "Kubernetes"), text(2, "v1.33.0")].concat();
    [text(1, "2.0"), field(2, &info), field(8, &paths)].concat()
}

/// `ParametersItem.parameter = 1`, `Parameter.non_body_parameter = 2`, its query parameter = 3 with
/// `in = 2, name = 4, type = 6`.
fn query_parameter(name: &str) -> Vec<u8> {
    let schema = [text(2, "query"), text(4, name), text(6, "string")].concat();
    field(1, &field(2, &field(3, &schema)))
}

fn text(number: u32, text: &str) -> Vec<u8> {
    field(number, text.as_bytes())
}

/// A length-delimited field.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 4);
    varint(u64::from(number << 3 | 2), &mut out);
    varint(bytes.len() as u64, &mut out);
    out.extend_from_slice(bytes);
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
