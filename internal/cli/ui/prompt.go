package ui

import (
	"bufio"
	"context"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
)

// Confirm asks a yes-no question that names what will be lost. It asks only
// where standard input and standard error are terminals; elsewhere the answer
// is yes, since whoever wrote the script named the things. Anything but y or
// yes is no, and no is an error, as is the end of ctx.
func (u *UI) Confirm(ctx context.Context, question string) error {
	if !u.o.InTTY || !u.o.ErrTTY {
		return nil
	}
	if _, err := u.o.Err.Write([]byte(u.line(question) + " [y/N] ")); err != nil {
		return err
	}
	answers := make(chan string, 1)
	// a read of a terminal cannot be taken back: after Ctrl-C it ends with
	// the process
	go func() {
		l, err := bufio.NewReader(u.o.In).ReadString('\n')
		if err != nil && l == "" {
			l = "no answer\n"
		}
		answers <- strings.ToLower(strings.TrimSpace(l))
	}()
	nothing := errs.New(errs.Cancelled, "not_confirmed", "nothing done")
	select {
	case <-ctx.Done():
		u.say("")
		return nothing
	case l := <-answers:
		switch l {
		case "y", "yes":
			return nil
		case "no answer":
			u.say("")
		}
		return nothing
	}
}
