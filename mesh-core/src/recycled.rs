//! Memory of values that come and go with each request, kept by the thread that let the last one go: what is noted of a
//! request costs no allocation.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

/// How many spare ones a thread keeps.
const MOST: usize = 64;

/// The spare memory of a thread.
pub type Spare<T> = RefCell<Vec<Box<Option<T>>>>;

/// What has its memory kept.
pub trait Recycle: Sized + 'static {
    /// Where.
    fn spare() -> &'static LocalKey<Spare<Self>>;
}

/// A value on the heap.
pub struct Recycled<T: Recycle>(Option<Box<Option<T>>>);

impl<T: Recycle> Recycled<T> {
    /// Makes a value in recycled memory, without moving it.
    #[inline]
    pub fn new(make: impl FnOnce() -> T) -> Self {
        let spare = T::spare().try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
        let mut memory = spare.unwrap_or_default();
        memory.get_or_insert_with(make);
        Recycled(Some(memory))
    }
}

const THERE: &str = "it is there until it is dropped";

impl<T: Recycle> Deref for Recycled<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.0.as_deref().and_then(Option::as_ref).expect(THERE)
    }
}

impl<T: Recycle> DerefMut for Recycled<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_deref_mut().and_then(Option::as_mut).expect(THERE)
    }
}

impl<T: Recycle + fmt::Debug> fmt::Debug for Recycled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Recycle> Drop for Recycled<T> {
    #[inline]
    fn drop(&mut self) {
        let Some(mut memory) = self.0.take() else { return };
        *memory = None;
        // A thread that ends keeps nothing.
        _ = T::spare().try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut()
                && spare.len() < MOST
            {
                spare.push(memory);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    struct Noted(Rc<()>);

    impl Recycle for Noted {
        fn spare() -> &'static LocalKey<Spare<Self>> {
            thread_local!(static SPARE: Spare<Noted> = const { RefCell::new(Vec::new()) });
            &SPARE
        }
    }

    #[test]
    fn memory_is_used_again_and_what_was_in_it_is_dropped() {
        let token = Rc::new(());
        let first = Recycled::new(|| Noted(Rc::clone(&token)));
        let place: *const Noted = &raw const *first;
        drop(first);
        assert_eq!(Rc::strong_count(&token), 1);
        let second = Recycled::new(|| Noted(Rc::clone(&token)));
        let Noted(held) = &*second;
        assert!(std::ptr::eq(place, &raw const *second) && Rc::strong_count(held) == 2);
    }
}
