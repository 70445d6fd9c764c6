//! `docs/fields.md` says what admission does.

#[test]
fn the_document_is_of_the_tables() {
    expect_test::expect_file!["../../../docs/fields.md"].assert_eq(&coracle_objects::support::document());
}
