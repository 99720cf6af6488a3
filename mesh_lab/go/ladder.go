package main

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The rungs of `mesh-lab bench`, on streams and consumers that it has prepared: see mesh_lab/bench/suite.py.
const (
	benchStream   = "BENCH"
	benchConsumer = "bench"
	bulkStream    = "BULK"
	payloadBytes  = 128
	ackEvery      = 500 // messages for which one acknowledgement is sent
)

// publish stores messages of zeros, so that nobody gains by their data.
func publish(s *session) report {
	payload := make([]byte, payloadBytes)
	return s.publishAll(s.count, func(i int) *nats.Msg {
		return &nats.Msg{Subject: "bench." + strconv.Itoa(i), Data: payload}
	})
}

// consume reads what the stream holds, and acknowledges each message, or many with one.
func consume(s *session) report {
	consumer := must(s.js.Consumer(context.Background(), benchStream, benchConsumer))
	received, began := 0, time.Now().UnixNano()
	s.consumeAll(consumer, func(msg jetstream.Msg) bool {
		received++
		s.acknowledge(msg, received)
		return received == s.count
	})
	return report{BeganNs: began, EndedNs: time.Now().UnixNano(), Received: received}
}

// acknowledge acknowledges the message that was received as such a number, unless a later acknowledgement covers it.
func (s *session) acknowledge(msg jetstream.Msg, number int) {
	if !s.ackAll || number%ackEvery == 0 || number == s.count {
		check(msg.Ack())
	}
}

// endToEnd has one process send orders while another one counts them.
func endToEnd(s *session) report {
	counter, sender := start("counter", s.urls), start("sender", s.urls)
	began := sender.report().BeganNs
	found := counter.report()
	found.BeganNs = began
	return found
}

// send stores orders, one to a message or many of one region. Where more are asked for than the data set has, all of it
// is repeated under other ids.
func send(s *session) report {
	orders := readOrders(s.file, s.count)
	if s.batch == 1 {
		return s.publishAll(len(orders), func(i int) *nats.Msg {
			return &nats.Msg{Subject: "bench." + orders[i].ID, Data: must(json.Marshal(orders[i]))}
		})
	}
	regions := map[string][]Order{}
	for _, order := range orders {
		regions[order.Region] = append(regions[order.Region], order)
	}
	var batches [][]Order
	for _, orders := range regions {
		batches = slices.AppendSeq(batches, slices.Chunk(orders, s.batch))
	}
	return s.publishAll(s.count/len(orders)*len(batches), func(i int) *nats.Msg {
		batch := slices.Clone(batches[i%len(batches)])
		for j := range batch {
			batch[j].ID = strconv.Itoa(i/len(batches)) + "-" + batch[j].ID
		}
		return &nats.Msg{Subject: "bulk." + batch[0].Region, Data: must(json.Marshal(batch))}
	})
}

// count counts orders until all have come: as a worker of the single lane, or as a reader of the bulk lane.
func count(s *session) report {
	var counted tally
	ctx, received := context.Background(), 0
	if s.batch == 1 {
		s.consumeAll(must(s.js.Consumer(ctx, benchStream, benchConsumer)), func(msg jetstream.Msg) bool {
			var order Order
			check(json.Unmarshal(msg.Data(), &order))
			counted.add(order)
			received++
			s.acknowledge(msg, received)
			return received == s.count
		})
	} else {
		reader := must(s.js.OrderedConsumer(ctx, bulkStream, jetstream.OrderedConsumerConfig{}))
		s.consumeAll(reader, func(msg jetstream.Msg) bool {
			var orders []Order
			check(json.Unmarshal(msg.Data(), &orders))
			for _, order := range orders {
				counted.add(order)
			}
			received += len(orders)
			return received == s.count
		})
	}
	return report{EndedNs: time.Now().UnixNano(), Received: received, Totals: counted.Totals, Doubled: counted.doubled}
}
