/* Row after row of an integer softmax by the path's row_s16, row_table, row_reciprocal and row_gemmlowp, behind which this is included. */
static void each_row(const hwq_softmax *s, int64_t rows, int64_t columns, const void *x, void *out)
{
    const int64_t in_row = columns * (s->type == HWQ_S16 ? 2 : 1), out_row = columns * (s->out_type == HWQ_S16 ? 2 : 1);
    for (int64_t row = 0; columns && row < rows; row++) {
        const char *from = (const char *)x + row * in_row;
        char *to = (char *)out + row * out_row;
        if (s->formula == HWQ_SOFTMAX_INT16) row_s16(s, columns, (const int16_t *)from, (int16_t *)to);
        else if (s->formula == HWQ_SOFTMAX_TABLE) row_table(s, columns, (const uint8_t *)from, (uint8_t *)to);
        else if (s->formula == HWQ_SOFTMAX_RECIPROCAL) row_reciprocal(s, columns, (const uint8_t *)from, (uint8_t *)to);
        else row_gemmlowp(s, columns, (const uint8_t *)from, to);
    }
}
