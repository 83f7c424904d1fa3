package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	sqlite "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/banger-dev/banger/internal/vm"
)

var _ vm.Store = (*Store)(nil)

// PutVM inserts or replaces a record, durably.
func (s *Store) PutVM(ctx context.Context, r vm.Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	var uid any
	if r.UID != 0 {
		uid = r.UID
	}
	_, err = s.db.ExecContext(ctx, `INSERT INTO vms (id, name, intent, uid, created, record) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, intent = excluded.intent, uid = excluded.uid, record = excluded.record`,
		r.ID, r.Name, string(r.Intent), uid, r.Created.UnixNano(), string(b))
	var se *sqlite.Error
	if errors.As(err, &se) && se.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE {
		return vm.NameTaken(r.Name)
	}
	return s.explain(err)
}

// DeleteVM removes a record.
func (s *Store) DeleteVM(ctx context.Context, id string) error {
	_, err := s.db.ExecContext(ctx, "DELETE FROM vms WHERE id = ?", id)
	return s.explain(err)
}

// ListVMs gives every record, oldest first.
func (s *Store) ListVMs(ctx context.Context) ([]vm.Record, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT id, record FROM vms ORDER BY created, id")
	if err != nil {
		return nil, s.explain(err)
	}
	defer rows.Close()
	var out []vm.Record
	for rows.Next() {
		var id, text string
		if err := rows.Scan(&id, &text); err != nil {
			return nil, s.explain(err)
		}
		var r vm.Record
		if err := json.Unmarshal([]byte(text), &r); err != nil || r.ID != id {
			return nil, damaged(s.path, fmt.Errorf("the record of VM %s cannot be read", id))
		}
		out = append(out, r)
	}
	return out, s.explain(rows.Err())
}
