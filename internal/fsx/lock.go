package fsx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked means that another process, or another Lock of this one, holds
// the lock.
var ErrLocked = errors.New("locked by another process")

// FileLock is a held lock; the kernel gives it up when the process ends,
// however it ends.
type FileLock struct{ f *os.File }

// How often a held lock is asked for again. The kernel can wait by itself,
// but then nothing can stop the waiting.
const (
	firstPoll = 5 * time.Millisecond
	lastPoll  = 200 * time.Millisecond
)

// Lock waits for the exclusive lock on path, making the file (0600) where it
// is missing. The file stays after Unlock: deleting it would let two holders
// in. It ends with ctx's error when ctx ends first.
func Lock(ctx context.Context, path string) (*FileLock, error) {
	for wait := firstPoll; ; wait = min(wait*2, lastPoll) {
		l, err := TryLock(path)
		if !errors.Is(err, ErrLocked) {
			return l, err
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("wait for lock %s: %w", path, context.Cause(ctx))
		case <-t.C:
		}
	}
}

// TryLock takes the lock at once or fails with ErrLocked.
func TryLock(path string) (*FileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case err == nil:
		return &FileLock{f: f}, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, errors.Join(fmt.Errorf("%s: %w", path, ErrLocked), f.Close())
	}
	return nil, errors.Join(&os.PathError{Op: "flock", Path: path, Err: err}, f.Close())
}

// Unlock gives the lock up. A second call is an error.
func (l *FileLock) Unlock() error { return l.f.Close() }
