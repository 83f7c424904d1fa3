package ui

import (
	"bufio"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
)

// Confirm asks a yes-no question that names what will be lost. It asks only
// where standard input and standard error are terminals; elsewhere the answer
// is yes, since whoever wrote the script named the things. Anything but y or
// yes is no, and no is an error.
func (u *UI) Confirm(question string) error {
	if !u.o.InTTY || !u.o.ErrTTY {
		return nil
	}
	if _, err := u.o.Err.Write([]byte(u.line(question) + " [y/N] ")); err != nil {
		return err
	}
	answer, err := bufio.NewReader(u.o.In).ReadString('\n')
	if err != nil && answer == "" {
		u.say("")
		return errs.New(errs.Cancelled, "not_confirmed", "nothing done: no answer")
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errs.New(errs.Cancelled, "not_confirmed", "nothing done")
}
