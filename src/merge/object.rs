//! The fields of a JSON object: in the order they came, each name once, found
//! in constant time however many there are. Names are compared by meaning
//! (`"\u0061"` is `"a"`) and written as they came.
//!
//! A removed field leaves a hole that only the same name fills again, instead
//! of moving the rest: a thousand removals from a large object stay a thousand
//! steps. A name that was read twice leaves one too, at its later place; of
//! places with one name the first counts.

use std::borrow::Cow;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::json::Json;
use super::string;

/// Up to this many fields a walk is quicker than a hash.
const WALK_MAX: usize = 8;

#[derive(Debug, Clone, Default)]
pub struct Object<'a> {
    fields: Vec<(Key<'a>, Option<Json<'a>>)>,
    live: usize,
    /// Of all of `fields`; None while a walk will do.
    places: Option<Places>,
}

/// A field's name: what it means, and how it is written where that differs.
#[derive(Debug, Clone)]
pub struct Key<'a>(Spelling<'a>);

#[derive(Debug, Clone)]
enum Spelling<'a> {
    Plain(&'a str),
    Escaped(Box<Escaped<'a>>),
}

#[derive(Debug, Clone)]
struct Escaped<'a> {
    body: Cow<'a, str>,
    name: Vec<u8>,
}

impl<'a> Key<'a> {
    /// From its text between the quotes.
    pub fn written(body: &'a str) -> Self {
        Self(match string::unescape(body) {
            Cow::Borrowed(_) => Spelling::Plain(body),
            Cow::Owned(name) => Spelling::Escaped(Box::new(Escaped { body: Cow::Borrowed(body), name })),
        })
    }

    /// From its meaning in WTF-8 (see `string.rs`).
    pub fn meaning(name: &[u8]) -> Self {
        Self(Spelling::Escaped(Box::new(Escaped {
            body: Cow::Owned(string::escape(name)),
            name: name.to_vec(),
        })))
    }

    pub fn body(&self) -> &str {
        match &self.0 {
            Spelling::Plain(body) => body,
            Spelling::Escaped(escaped) => &escaped.body,
        }
    }

    pub fn name(&self) -> &[u8] {
        match &self.0 {
            Spelling::Plain(body) => body.as_bytes(),
            Spelling::Escaped(escaped) => &escaped.name,
        }
    }
}

impl<'a> Object<'a> {
    /// Of fields as they were read, each with a value. Of a name that comes
    /// twice, the first place and the last value.
    pub fn from_fields(fields: Vec<(Key<'a>, Option<Json<'a>>)>) -> Self {
        let mut object = Self {
            live: fields.len(),
            places: (fields.len() > WALK_MAX).then(|| Places::for_len(fields.len())),
            fields,
        };
        for place in 0..object.fields.len() {
            let (earlier, rest) = object.fields.split_at_mut(place);
            let (key, value) = &mut rest[0];
            let named = |place: usize| earlier[place].0.name() == key.name();
            let first = match &mut object.places {
                Some(places) => places.find_or_add(key.name(), place, named),
                None => (0..place).find(|&place| named(place)),
            };
            if let Some(first) = first {
                earlier[first].1 = value.take();
                object.live -= 1;
            }
        }
        object
    }

    pub fn len(&self) -> usize {
        self.live
    }

    pub fn get(&self, name: &[u8]) -> Option<&Json<'a>> {
        self.fields[self.place(name)?].1.as_ref()
    }

    pub fn get_mut(&mut self, name: &[u8]) -> Option<&mut Json<'a>> {
        let place = self.place(name)?;
        self.fields[place].1.as_mut()
    }

    /// As `get`, quicker if the field is the one at `position` of the list:
    /// two versions of an object mostly agree about that.
    pub fn get_near(&self, position: usize, name: &[u8]) -> Option<&Json<'a>> {
        match self.fields.get(position) {
            Some((key, Some(value))) if key.name() == name => Some(value),
            _ => self.get(name),
        }
    }

    /// As `get_near`.
    pub fn get_near_mut(&mut self, position: usize, name: &[u8]) -> Option<&mut Json<'a>> {
        match self.fields.get(position) {
            Some((key, Some(_))) if key.name() == name => self.fields[position].1.as_mut(),
            _ => self.get_mut(name),
        }
    }

    /// A name that is or was there keeps its place and its spelling.
    pub fn insert(&mut self, key: Key<'a>, value: Json<'a>) {
        if let Some(place) = self.place(key.name()) {
            if self.fields[place].1.replace(value).is_none() {
                self.live += 1;
            }
            return;
        }
        self.fields.push((key, Some(value)));
        self.live += 1;
        self.remember_last();
    }

    pub fn remove(&mut self, name: &[u8]) {
        if let Some(place) = self.place(name)
            && self.fields[place].1.take().is_some()
        {
            self.live -= 1;
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key<'a>, &Json<'a>)> {
        self.fields.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)))
    }

    pub fn into_fields(self) -> impl Iterator<Item = (Key<'a>, Json<'a>)> {
        self.fields.into_iter().filter_map(|(key, value)| Some((key, value?)))
    }

    /// Where the name is or was.
    fn place(&self, name: &[u8]) -> Option<usize> {
        let named = |place: usize| self.fields[place].0.name() == name;
        match &self.places {
            Some(places) => places.find(name, named),
            None => (0..self.fields.len()).find(|&place| named(place)),
        }
    }

    fn remember_last(&mut self) {
        let len = self.fields.len();
        match &mut self.places {
            Some(places) if places.has_room_for(len) => {
                places.find_or_add(self.fields[len - 1].0.name(), len - 1, |_| false);
            }
            None if len <= WALK_MAX => {}
            _ => {
                let mut places = Places::for_len(len);
                for (place, (key, _)) in self.fields.iter().enumerate() {
                    places.find_or_add(key.name(), place, |_| false);
                }
                self.places = Some(places);
            }
        }
    }
}

/// A hash table of places in a list of fields, with linear probing; names stay
/// in the list. Hashed with keys of the process's own, so that no client can
/// prepare collisions; nothing ever depends on its order.
#[derive(Debug, Clone)]
struct Places {
    /// A power of two of them, at most half in use. 0 is free, else place + 1.
    slots: Vec<u32>,
    hashing: RandomState,
}

impl Places {
    fn for_len(len: usize) -> Self {
        Self { slots: vec![0; (len * 2).next_power_of_two()], hashing: RandomState::new() }
    }

    fn has_room_for(&self, len: usize) -> bool {
        len * 2 <= self.slots.len()
    }

    fn find(&self, name: &[u8], named: impl Fn(usize) -> bool) -> Option<usize> {
        self.probe(name)
            .map_while(|slot| self.slots[slot].checked_sub(1))
            .map(|place| place as usize)
            .find(|&place| named(place))
    }

    /// Where the name already is; else None, and it is remembered at `place`.
    fn find_or_add(&mut self, name: &[u8], place: usize, named: impl Fn(usize) -> bool) -> Option<usize> {
        for slot in self.probe(name) {
            match self.slots[slot].checked_sub(1) {
                Some(other) if named(other as usize) => return Some(other as usize),
                Some(_) => {}
                None => {
                    self.slots[slot] = u32::try_from(place + 1).expect("a frame has fewer fields");
                    return None;
                }
            }
        }
        unreachable!("half of the slots are free")
    }

    /// All slots, from the one where the name should be.
    fn probe(&self, name: &[u8]) -> impl Iterator<Item = usize> + use<> {
        let mut hasher = self.hashing.build_hasher();
        hasher.write(name);
        let first = hasher.finish() as usize;
        let len = self.slots.len();
        (0..len).map(move |step| first.wrapping_add(step) & (len - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(n: usize) -> Json<'static> {
        Json::Scalar(n.to_string().into())
    }

    fn names(object: &Object<'_>) -> Vec<String> {
        object.iter().map(|(key, _)| key.body().to_owned()).collect()
    }

    #[test]
    fn a_repeated_name_keeps_its_place_and_takes_the_last_value() {
        let mut object = Object::default();
        object.insert(Key::written("a"), number(1));
        object.insert(Key::written("b"), number(2));
        object.insert(Key::written(r"\u0061"), number(3));

        assert_eq!(names(&object), ["a", "b"]);
        assert_eq!(object.get(b"a"), Some(&number(3)));
    }

    #[test]
    fn fields_read_twice_count_once_in_small_and_large_objects() {
        for distinct in [1, 7, 8, 9, 40] {
            let bodies: Vec<String> = (0..distinct).map(|n| format!("k{n}")).collect();
            let twice = bodies.iter().chain(&bodies).enumerate();
            let fields = twice.map(|(n, body)| (Key::written(body), Some(number(n))));

            let mut object = Object::from_fields(fields.collect());
            object.insert(Key::written("new"), number(0));

            assert_eq!(object.len(), distinct + 1);
            for (n, body) in bodies.iter().enumerate() {
                let last = number(distinct + n);
                assert_eq!(object.get(body.as_bytes()), Some(&last));
                for position in [n, distinct + n] {
                    assert_eq!(object.get_near(position, body.as_bytes()), Some(&last));
                    let found = object.get_near_mut(position, body.as_bytes());
                    assert_eq!(found.as_deref(), Some(&last));
                }
                object.remove(body.as_bytes());
                assert_eq!(object.get_near(distinct + n, body.as_bytes()), None);
            }
            assert_eq!(names(&object), ["new"]);
        }
    }

    #[test]
    fn a_removed_field_is_gone_until_it_is_put_back() {
        let mut object = Object::default();
        for name in ["a", "b", "c"] {
            object.insert(Key::written(name), number(0));
        }
        object.remove(b"a");
        object.remove(b"nothing");
        assert_eq!(names(&object), ["b", "c"]);

        object.insert(Key::meaning(b"a"), number(1));
        assert_eq!(names(&object), ["a", "b", "c"]);
        assert_eq!(object.len(), 3);
    }

    #[test]
    fn small_and_large_objects_answer_alike() {
        let bodies: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
        let mut object = Object::default();
        for (n, body) in bodies.iter().enumerate() {
            object.insert(Key::written(body), number(n));
            assert_eq!(object.get(body.as_bytes()), Some(&number(n)));
            assert_eq!(object.get(b"absent"), None);
        }
        for (n, body) in bodies.iter().enumerate() {
            assert_eq!(object.get_near(n + 1, body.as_bytes()), Some(&number(n)));
            object.remove(body.as_bytes());
            assert_eq!(object.get(body.as_bytes()), None);
            assert_eq!(object.len(), 39 - n);
        }
        object.insert(Key::written("k7"), number(7));
        assert_eq!(names(&object), ["k7"]);
    }
}
