package shim

import (
	"fmt"
	"io"
	"os"
	"sync"
)

// capLog is a log in two files that together never hold more than a limit:
// when the first is full its content moves to the second. Both are opened once
// and rewritten in place, never renamed, so that it goes on working after the
// process lost the right to touch their directory.
type capLog struct {
	mu   sync.Mutex
	half int64
	size int64
	cur  *os.File
	old  *os.File
}

// openCapLog opens path and path.1 (0600). What a former process left stays,
// as far as the limit allows.
func openCapLog(path string, limit int64) (*capLog, error) {
	l := &capLog{half: limit / 2}
	var err error
	if l.cur, err = openLog(path); err != nil {
		return nil, err
	}
	if l.old, err = openLog(path + ".1"); err != nil {
		l.cur.Close()
		return nil, err
	}
	st, err := l.cur.Stat()
	if err == nil {
		l.size = st.Size()
		if st, err = l.old.Stat(); err == nil && st.Size() > l.half {
			err = l.old.Truncate(0)
		}
	}
	if err == nil && l.size >= l.half {
		err = l.turn()
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func openLog(path string) (*os.File, error) {
	const flags = os.O_RDWR | os.O_CREATE
	f, err := os.OpenFile(path, flags|noFollow, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

// Path is the first file's.
func (l *capLog) Path() string { return l.cur.Name() }

// Write appends b, cut into pieces that fit. The count is what reached a file.
func (l *capLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	done := 0
	for len(b) > 0 {
		room := l.half - l.size
		if room <= 0 {
			if err := l.turn(); err != nil {
				return done, err
			}
			continue
		}
		n, err := l.cur.WriteAt(b[:min(int64(len(b)), room)], l.size)
		l.size += int64(n)
		done += n
		if err != nil {
			return done, err
		}
		b = b[n:]
	}
	return done, nil
}

// turn moves the last half of the limit to the second file and empties the
// first. A copy that fails loses old lines, never the bound.
func (l *capLog) turn() error {
	if err := l.old.Truncate(0); err != nil {
		return err
	}
	from := max(0, l.size-l.half)
	_, cerr := io.Copy(io.NewOffsetWriter(l.old, 0), io.NewSectionReader(l.cur, from, l.size-from))
	if err := l.cur.Truncate(0); err != nil {
		return err
	}
	l.size = 0
	return cerr
}

// Close closes both files.
func (l *capLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.cur.Close()
	if oerr := l.old.Close(); err == nil {
		err = oerr
	}
	return err
}
