//! The columns of tables as definitions declare them: `additionalPrinterColumns`.

use jiff::Timestamp;
use serde_json::Value;

use super::path::Path;
use crate::{
    fields::{integer, text},
    kind::Column,
    kinds::age,
};

/// What stands in the cells of a row.
#[derive(Debug)]
pub struct Cells(Vec<Cell>);

#[derive(Debug)]
struct Cell {
    path: Path,
    type_: CellType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CellType {
    Text,
    Integer,
    Number,
    Boolean,
    Date,
}

/// The columns: the name, and those that are declared; the age where none are.
pub fn shown(declared: &[Value]) -> Vec<Column> {
    let mut columns = vec![Column::name()];
    if declared.is_empty() {
        columns.push(Column::age());
    }
    columns.extend(declared.iter().map(|column| {
        let own = |field: &str| text(column, field).to_owned().into();
        Column {
            name: own("/name"),
            type_: own("/type"),
            format: own("/format"),
            description: own("/description"),
            priority: integer(column, "/priority").and_then(|priority| priority.try_into().ok()).unwrap_or(0),
        }
    }));
    columns
}

impl Cells {
    pub fn of(declared: &[Value]) -> Cells {
        let parse = |path: &str| Path::parse(path).unwrap_or_default();
        let mut cells = vec![Cell { path: parse(".metadata.name"), type_: CellType::Text }];
        if declared.is_empty() {
            cells.push(Cell { path: parse(".metadata.creationTimestamp"), type_: CellType::Date });
        }
        cells.extend(declared.iter().map(|column| {
            let type_ = match text(column, "/type") {
                "integer" => CellType::Integer,
                "number" => CellType::Number,
                "boolean" => CellType::Boolean,
                "date" => CellType::Date,
                _ => CellType::Text,
            };
            Cell { path: parse(text(column, "/jsonPath")), type_ }
        }));
        Cells(cells)
    }

    pub fn of_object(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        self.0
            .iter()
            .map(|cell| cell.path.first(object).map_or(Value::Null, |value| cell.shown(value, now)))
            .collect()
    }
}

impl Cell {
    fn shown(&self, value: &Value, now: Timestamp) -> Value {
        match (self.type_, value) {
            (CellType::Date, Value::String(time)) => age(time, now).into(),
            (CellType::Integer, Value::Number(number)) if number.is_i64() => value.clone(),
            (CellType::Number, Value::Number(_)) | (CellType::Boolean, Value::Bool(_)) => value.clone(),
            (CellType::Text, Value::String(_)) => value.clone(),
            (CellType::Text, Value::Null) => Value::Null,
            (CellType::Text, other) => other.to_string().into(),
            _ => Value::Null,
        }
    }
}
