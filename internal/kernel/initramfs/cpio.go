package initramfs

import (
	"errors"
	"fmt"
	"io"
	"math"
)

// File types of a cpio entry's mode.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeChar = 0o020000
)

// cpioWriter writes the "newc" form of cpio that the kernel unpacks. Owners
// are root and times zero, so that equal content has equal bytes.
type cpioWriter struct {
	w   io.Writer
	n   int64 // bytes written
	ino uint32
	err error
}

// entry writes one header with its content. major and minor are those of a
// device node.
func (c *cpioWriter) entry(name string, mode uint32, major, minor uint32, size int64, r io.Reader) {
	if c.err != nil {
		return
	}
	if size < 0 || size > math.MaxUint32 {
		c.err = fmt.Errorf("%s is too large for an initramfs", name)
		return
	}
	c.ino++
	links := uint32(1)
	if mode&0o170000 == modeDir {
		links = 2
	}
	c.printf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.ino, mode, 0, 0, links, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
	c.pad(4)
	if size > 0 && c.err == nil {
		n, err := io.Copy(c.w, io.LimitReader(r, size))
		c.n += n
		if err == nil && n != size {
			err = errors.New("it changed while it was read")
		}
		if err != nil {
			c.err = fmt.Errorf("%s: %w", name, err)
		}
	}
	c.pad(4)
}

func (c *cpioWriter) dir(name string, mode uint32) { c.entry(name, modeDir|mode, 0, 0, 0, nil) }

// end writes the trailer, after which another archive may follow.
func (c *cpioWriter) end() error {
	c.entry("TRAILER!!!", 0, 0, 0, 0, nil)
	return c.err
}

func (c *cpioWriter) pad(to int64) {
	if rest := c.n % to; rest != 0 {
		c.write(make([]byte, to-rest))
	}
}

func (c *cpioWriter) printf(format string, args ...any) { c.write(fmt.Appendf(nil, format, args...)) }

func (c *cpioWriter) write(p []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.err = err
}
