//! Operations on the inside of a document: `set`, `unset`, `inc`, `max`,
//! `min`, `add` and `remove` at RFC 6901 pointers. A list is read as a whole
//! before anything is done, and done in order, all or nothing.
//!
//! Where nothing is, `set`, `inc`, `max`, `min` and `add` create: missing
//! parents become objects, and one step past the end of an array (`-` or its
//! length) appends. `unset` and `remove` of nothing are fine. The root itself
//! can be set but not unset: deleting the key is another call.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::Refusal;
use super::json::Json;
use super::number;
use super::object::{Key, Object};
use super::outline;
use super::parse::{ParseError, parse};
use super::pointer::{Element, Pointer, element};
use super::string;

/// How much looking through arrays one list may cost, in the steps of
/// `Json::equals` (about 10 ns each). Only hundreds of `add` or `remove` on
/// arrays of many thousand elements come near it: a thousand of them fit on
/// 5,000 elements. It bounds what a hostile list costs the store's one writer.
const STEPS_MAX: usize = 6_000_000;

#[derive(Debug)]
pub struct Operation<'a> {
    pointer: Pointer,
    action: Action<'a>,
}

#[derive(Debug)]
enum Action<'a> {
    Set(Json<'a>),
    Unset,
    Inc(Cow<'a, str>),
    Max(Cow<'a, str>),
    Min(Cow<'a, str>),
    Add(Json<'a>),
    Remove(Json<'a>),
}

/// Why one operation is refused: the field of it that is at fault and a reason
/// for people, or a bound.
#[derive(Debug, PartialEq)]
enum Fault {
    Invalid(&'static str, &'static str),
    TooDeep,
    TooMuchWork,
}

impl Fault {
    fn at(self, index: usize) -> Refusal {
        match self {
            Fault::Invalid(field, reason) => Refusal::InvalidOperation { index, field, reason },
            Fault::TooDeep => Refusal::TooDeep,
            Fault::TooMuchWork => Refusal::TooLarge { limit: "opsWork" },
        }
    }
}

const WRONG_TYPE: Fault = Fault::Invalid("path", "the value there has another type");
const NOT_A_CONTAINER: Fault = Fault::Invalid("path", "leads through a value without fields");
const BAD_INDEX: Fault = Fault::Invalid("path", "is not an index into the array");
const NO_SUM: Fault = Fault::Invalid("value", "the sum is out of range");
const NO_ORDER: Fault = Fault::Invalid("value", "the number is out of range");

/// Reads a list of at most `ops_max` operations that put nothing deeper than
/// `depth_max`. A longer list is refused without being parsed.
pub fn read(text: &str, ops_max: usize, depth_max: usize) -> Result<Vec<Operation<'_>>, Refusal> {
    if outline::lists_more_than(text, ops_max) {
        return Err(Refusal::TooLarge { limit: "ops" });
    }
    // The list and the operation are two containers around a value.
    let list = match parse(text, depth_max.saturating_add(2)) {
        Ok(Json::Array(list)) => list,
        Err(ParseError::TooDeep) => return Err(Refusal::TooDeep),
        Ok(_) | Err(ParseError::NotJson) => return Err(Refusal::InvalidField { field: "ops" }),
    };
    list.into_iter()
        .enumerate()
        .map(|(index, item)| read_one(item, depth_max).map_err(|fault| fault.at(index)))
        .collect()
}

/// Does all of `operations` to `document`, or refuses and leaves it useless.
pub fn apply<'a>(document: &mut Json<'a>, operations: Vec<Operation<'a>>) -> Result<(), Refusal> {
    let mut steps = 0;
    for (index, operation) in operations.into_iter().enumerate() {
        apply_one(document, operation, &mut steps).map_err(|fault| fault.at(index))?;
        if steps > STEPS_MAX {
            return Err(Fault::TooMuchWork.at(index));
        }
    }
    Ok(())
}

fn read_one(item: Json<'_>, depth_max: usize) -> Result<Operation<'_>, Fault> {
    let Json::Object(fields) = item else {
        return Err(Fault::Invalid("op", "an operation is an object"));
    };
    let (mut op, mut path, mut value) = (None, None, None);
    for (key, field) in fields.into_fields() {
        match key.name() {
            b"op" => op = Some(field),
            b"path" => path = Some(field),
            b"value" => value = Some(field),
            _ => {
                return Err(Fault::Invalid("op", "has a field other than op, path, value"));
            }
        }
    }
    let pointer = path
        .as_ref()
        .ok_or(Fault::Invalid("path", "is missing"))?
        .as_string()
        .and_then(Pointer::read)
        .ok_or(Fault::Invalid("path", "is not a JSON pointer"))?;
    let action = read_action(op, value)?;
    if pointer.depth().saturating_add(action.depth()) > depth_max {
        return Err(Fault::TooDeep);
    }
    Ok(Operation { pointer, action })
}

fn read_action<'a>(op: Option<Json<'a>>, value: Option<Json<'a>>) -> Result<Action<'a>, Fault> {
    let op = op.ok_or(Fault::Invalid("op", "is missing"))?;
    let name = op.as_string().map(string::unescape);
    Ok(match name.as_deref() {
        Some(b"set") => Action::Set(required(value)?),
        // A value is no use here and no harm: typed clients send one anyway.
        Some(b"unset") => Action::Unset,
        Some(b"inc") => Action::Inc(match value {
            None => Cow::Borrowed("1"),
            value => number_in(value)?,
        }),
        Some(b"max") => Action::Max(number_in(value)?),
        Some(b"min") => Action::Min(number_in(value)?),
        Some(b"add") => Action::Add(required(value)?),
        Some(b"remove") => Action::Remove(required(value)?),
        _ => return Err(Fault::Invalid("op", "is none of the known operations")),
    })
}

fn required(value: Option<Json<'_>>) -> Result<Json<'_>, Fault> {
    value.ok_or(Fault::Invalid("value", "is missing"))
}

fn number_in(value: Option<Json<'_>>) -> Result<Cow<'_, str>, Fault> {
    required(value)?.into_number().ok_or(Fault::Invalid("value", "is not a number"))
}

impl Action<'_> {
    /// How deep what it may create nests, below the place it creates it at.
    fn depth(&self) -> usize {
        match self {
            Action::Set(value) => value.depth(),
            Action::Add(value) => 1 + value.depth(),
            Action::Inc(_) | Action::Max(_) | Action::Min(_) => 0,
            Action::Unset | Action::Remove(_) => 0,
        }
    }
}

fn apply_one<'a>(document: &mut Json<'a>, operation: Operation<'a>, steps: &mut usize) -> Result<(), Fault> {
    let pointer = &operation.pointer;
    match operation.action {
        Action::Set(value) => put(document, pointer, value),
        Action::Unset => unset(document, pointer, steps),
        Action::Inc(by) => change_number(document, pointer, &by, steps, |there| {
            let total = number::sum(there.unwrap_or("0"), &by).ok_or(NO_SUM)?;
            Ok(Some(Cow::Owned(total)))
        }),
        Action::Max(value) => choose(document, pointer, value, steps, Ordering::Greater),
        Action::Min(value) => choose(document, pointer, value, steps, Ordering::Less),
        Action::Add(value) => match find(document, pointer.steps())? {
            Some(Json::Array(items)) => {
                if !contains(items, &value, steps)? {
                    items.push(value);
                }
                Ok(())
            }
            Some(_) => Err(WRONG_TYPE),
            None => put(document, pointer, Json::Array(vec![value])),
        },
        Action::Remove(value) => match find(document, pointer.steps())? {
            Some(Json::Array(items)) => {
                items.retain(|item| !item.equals(&value, steps));
                Ok(())
            }
            Some(_) => Err(WRONG_TYPE),
            None => Ok(()),
        },
    }
}

fn contains(items: &[Json<'_>], value: &Json<'_>, steps: &mut usize) -> Result<bool, Fault> {
    for item in items {
        if item.equals(value, steps) {
            return Ok(true);
        }
        if *steps > STEPS_MAX {
            return Err(Fault::TooMuchWork);
        }
    }
    Ok(false)
}

/// Keeps whichever number stands in `wanted` order to the other.
fn choose<'a>(
    document: &mut Json<'a>,
    pointer: &Pointer,
    value: Cow<'a, str>,
    steps: &mut usize,
    wanted: Ordering,
) -> Result<(), Fault> {
    change_number(document, pointer, &value.clone(), steps, |there| {
        let Some(there) = there else {
            return Ok(Some(value));
        };
        let order = number::compare(&value, there).ok_or(NO_ORDER)?;
        Ok((order == wanted).then_some(value))
    })
}

/// Gives the number at `pointer` (None where nothing is) to `change` and puts
/// what it returns in its place; None leaves it. `operand` is only measured.
fn change_number<'a>(
    document: &mut Json<'a>,
    pointer: &Pointer,
    operand: &str,
    steps: &mut usize,
    change: impl FnOnce(Option<&str>) -> Result<Option<Cow<'a, str>>, Fault>,
) -> Result<(), Fault> {
    match find(document, pointer.steps())? {
        Some(there) => {
            let text = there.as_number().ok_or(WRONG_TYPE)?;
            *steps += (text.len() + operand.len()) / 8;
            if let Some(text) = change(Some(text))? {
                *there = Json::Scalar(text);
            }
            Ok(())
        }
        None => match change(None)? {
            Some(text) => put(document, pointer, Json::Scalar(text)),
            None => Ok(()),
        },
    }
}

/// The value at the end of `steps`; None where nothing is.
fn find<'t, 'a>(document: &'t mut Json<'a>, steps: &[Vec<u8>]) -> Result<Option<&'t mut Json<'a>>, Fault> {
    let mut here = document;
    for step in steps {
        let next = match here {
            Json::Object(fields) => fields.get_mut(step),
            Json::Array(items) => match element(step, items.len()).ok_or(BAD_INDEX)? {
                Element::Existing(index) => items.get_mut(index),
                Element::AfterLast | Element::Beyond => None,
            },
            Json::Scalar(_) => return Err(NOT_A_CONTAINER),
        };
        match next {
            Some(next) => here = next,
            None => return Ok(None),
        }
    }
    Ok(Some(here))
}

/// Puts `value` at `pointer`, in place of what is there or as something new.
fn put<'a>(document: &mut Json<'a>, pointer: &Pointer, value: Json<'a>) -> Result<(), Fault> {
    let mut here = document;
    for step in pointer.steps() {
        here = child(here, step)?;
    }
    *here = value;
    Ok(())
}

/// The child at `step`, made as an empty object if it is not there.
fn child<'t, 'a>(parent: &'t mut Json<'a>, step: &[u8]) -> Result<&'t mut Json<'a>, Fault> {
    match parent {
        Json::Object(fields) => Ok(child_field(fields, step)),
        Json::Array(items) => {
            let index = match element(step, items.len()).ok_or(BAD_INDEX)? {
                Element::Existing(index) => index,
                Element::AfterLast => {
                    items.push(Json::empty_object());
                    items.len() - 1
                }
                Element::Beyond => return Err(BAD_INDEX),
            };
            Ok(&mut items[index])
        }
        Json::Scalar(_) => Err(NOT_A_CONTAINER),
    }
}

fn child_field<'t, 'a>(fields: &'t mut Object<'a>, name: &[u8]) -> &'t mut Json<'a> {
    if fields.get(name).is_none() {
        fields.insert(Key::meaning(name), Json::empty_object());
    }
    fields.get_mut(name).expect("it was there or just inserted")
}

fn unset(document: &mut Json<'_>, pointer: &Pointer, steps: &mut usize) -> Result<(), Fault> {
    let (last, parents) = pointer.split_last().ok_or(Fault::Invalid("path", "the root cannot be unset"))?;
    match find(document, parents)? {
        None => {}
        Some(Json::Object(fields)) => fields.remove(last),
        Some(Json::Array(items)) => {
            if let Element::Existing(index) = element(last, items.len()).ok_or(BAD_INDEX)? {
                items.remove(index);
                // Moving one element up is a fraction of a step.
                *steps += (items.len() - index) / 8;
            }
        }
        Some(Json::Scalar(_)) => return Err(NOT_A_CONTAINER),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
