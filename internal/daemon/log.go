package daemon

import (
	"os"
	"sync"
)

// maxLog is how large the log may grow before it is turned over, in bytes; one
// older file is kept.
const maxLog = 8 << 20

// rotated is a log file of a bounded size.
type rotated struct {
	path string
	max  int64

	mu   sync.Mutex // held across the write: lines must not mix
	f    *os.File
	size int64
}

func openRotated(path string, limit int64) (*rotated, error) {
	r := &rotated{path: path, max: limit}
	return r, r.open()
}

func (r *rotated) open() error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	r.f, r.size = f, fi.Size()
	return nil
}

// Write appends one record, turning the log over first where it is full.
func (r *rotated) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.f == nil {
		return 0, os.ErrClosed
	}
	if r.size+int64(len(p)) > r.max && r.size > 0 {
		if err := os.Rename(r.path, r.path+".1"); err == nil {
			old := r.f
			if err := r.open(); err != nil {
				r.f = old // better a log too long than none
			} else {
				old.Close()
			}
		}
	}
	n, err := r.f.Write(p)
	r.size += int64(n)
	return n, err
}

// Close closes the log.
func (r *rotated) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.f == nil {
		return nil
	}
	err := r.f.Close()
	r.f = nil
	return err
}
